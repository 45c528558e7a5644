"""The attention kernel on a GPU against float64, and what it refuses."""

import pytest
import torch

from robuq_bench.engine.kernels.attention import attention
from robuq_bench.errors import BenchError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def tokens(images, count, heads, dim, size=1.0):
    generator = torch.Generator("cuda").manual_seed(images + count + dim)
    qkv = torch.randn(images * count, 3 * heads * dim, device="cuda", generator=generator)
    return (size * qkv).bfloat16()


def expected(qkv, images, heads):
    count, dim = len(qkv) // images, qkv.shape[1] // 3 // heads
    query, key, value = qkv.double().view(images, count, 3, heads, dim).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / dim**0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(len(qkv), -1)


@pytest.mark.parametrize(
    ("images", "count", "heads", "dim"),
    [(2, 256, 16, 72), (1, 64, 4, 32), (3, 128, 6, 64), (2, 192, 2, 24), (1, 256, 3, 128), (9, 64, 2, 8)],
)
@pytest.mark.parametrize("size", [1.0, 6.0])  # even weights, and weights that a few keys share
def test_it_is_softmax_attention(images, count, heads, dim, size):
    qkv = tokens(images, count, heads, dim, size)
    want = expected(qkv, images, heads)
    # Weights and result are rounded to bfloat16, 2^-9 each; the norm gathers them.
    assert (attention(qkv, images, heads) - want).norm() < 4e-3 * want.norm()


def test_large_scores_do_not_overflow():
    qkv = tokens(1, 64, 2, 64, 100.0)
    assert attention(qkv, 1, 2).isfinite().all()
    torch.testing.assert_close(attention(qkv, 1, 2).double(), expected(qkv, 1, 2), rtol=2e-2, atol=2.0)


def test_images_do_not_see_each_other():
    first, second = tokens(1, 64, 2, 64), tokens(2, 64, 2, 64)
    both = torch.cat([first, second])
    assert torch.equal(attention(both, 3, 2)[:64], attention(first, 1, 2))
    assert torch.equal(attention(both, 3, 2)[64:], attention(second, 2, 2))


def test_shapes_that_do_not_fit_are_refused():
    for images, count, heads, dim in ((1, 80, 2, 64), (1, 512, 2, 64), (1, 64, 2, 36), (1, 64, 1, 256)):
        with pytest.raises(BenchError, match="does not take"):
            attention(tokens(images, count, heads, dim), images, heads)
    with pytest.raises(BenchError, match="bfloat16"):
        attention(tokens(1, 64, 2, 64).float(), 1, 2)
