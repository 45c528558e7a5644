"""The attention kernels on a GPU against float64, and what they refuse."""

import pytest
import torch

from robuq_bench.engine.kernels.attention import Shape, ShortKernel, StreamKernel, attention, chosen
from robuq_bench.errors import BenchError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
XL = Shape(256, 16, 72)
SHORT = [
    (2, ShortKernel(XL)),
    (1, ShortKernel(Shape(64, 4, 32))),
    (3, ShortKernel(Shape(128, 6, 64))),
    (2, ShortKernel(Shape(192, 2, 24))),
    (1, ShortKernel(Shape(256, 3, 128))),
    (9, ShortKernel(Shape(64, 2, 8))),
]
STREAM = [
    (1, StreamKernel(XL, 128)),
    (3, StreamKernel(Shape(256, 2, 64), 128)),
    (20, StreamKernel(Shape(256, 16, 64), 128)),  # from here on a block has several items, one after the other
    (20, StreamKernel(Shape(256, 16, 64), 256)),
    (27, StreamKernel(XL, 256)),
]
hopper = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
CASES = pytest.mark.parametrize(
    ("images", "kernel"), [*SHORT, *(pytest.param(*case, marks=hopper) for case in STREAM)], ids=str
)


def tokens(images, shape, size=1.0):
    generator = torch.Generator("cuda").manual_seed(images + shape.tokens + shape.dim)
    size_of_all = images * shape.tokens, 3 * shape.heads * shape.dim
    return (size * torch.randn(size_of_all, device="cuda", generator=generator)).bfloat16()


def expected(qkv, images, shape):
    parts = qkv.double().view(images, shape.tokens, 3, shape.heads, shape.dim)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / shape.dim**0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).reshape(len(qkv), -1)


@CASES
@pytest.mark.parametrize("size", [1.0, 6.0])  # even weights, and weights that a few keys share
def test_it_is_softmax_attention(images, kernel, size):
    shape = kernel.shape
    qkv = tokens(images, shape, size)
    want = expected(qkv, images, shape)
    out = torch.full((len(qkv) + 1, want.shape[1]), torch.nan, dtype=torch.bfloat16, device="cuda")
    out[-1] = 7
    attention(qkv, images, shape.heads, kernel, out[:-1])
    # Weights and result are rounded to bfloat16, 2^-9 each; the norm gathers them.
    assert (out[:-1] - want).norm() < 4e-3 * want.norm()
    assert (out[-1] == 7).all()


@CASES
def test_large_scores_do_not_overflow(images, kernel):
    images = min(images, 3)
    qkv = tokens(images, kernel.shape, 100.0)
    result, want = attention(qkv, images, kernel.shape.heads, kernel), expected(qkv, images, kernel.shape)
    assert result.isfinite().all()
    torch.testing.assert_close(result.double(), want, rtol=2e-2, atol=3.0)


@CASES
def test_rising_scores_are_put_in_proportion(images, kernel):
    """The last key's score is the largest by far, so what was summed before counts for nothing."""
    shape = kernel.shape
    qkv = torch.zeros(images, shape.tokens, 3, shape.heads, shape.dim, device="cuda", dtype=torch.bfloat16)
    qkv[:, :, 0] = 1
    qkv[:, :, 1] = torch.arange(shape.tokens, device="cuda").view(1, -1, 1, 1) - 5.0 * shape.tokens
    qkv[:, :, 2] = torch.arange(shape.tokens, device="cuda").view(1, -1, 1, 1) % 251
    qkv = qkv.flatten(0, 1).flatten(1)
    want = expected(qkv, images, shape)
    assert (attention(qkv, images, shape.heads, kernel) - want).abs().max() <= 2**-7 * want.max()


@CASES
def test_images_do_not_see_each_other(images, kernel):
    """One image is not a number; its neighbours' bits stay, and nothing of it looks like one."""
    shape, some = kernel.shape, images + 1
    qkv = tokens(some, shape)
    clean = attention(qkv, some, shape.heads, kernel).unflatten(0, (some, -1))
    qkv[-shape.tokens :] = torch.nan
    spoilt = attention(qkv, some, shape.heads, kernel).unflatten(0, (some, -1))
    assert torch.equal(spoilt[:-1], clean[:-1]) and clean.isfinite().all() and spoilt[-1].isnan().all()


@hopper
@pytest.mark.parametrize("images", [1, 4, 64])
def test_what_the_rule_takes_runs(images):
    kernel = chosen(images, XL, torch.device("cuda", torch.cuda.current_device()))
    qkv = tokens(images, XL)
    assert kernel and torch.equal(attention(qkv, images, XL.heads), attention(qkv, images, XL.heads, kernel))


def test_shapes_that_do_not_fit_are_refused():
    for images, shape in ((1, Shape(80, 2, 64)), (1, Shape(512, 2, 64)), (1, Shape(64, 2, 36)), (1, Shape(64, 1, 256))):
        with pytest.raises(BenchError, match="does not take"):
            attention(tokens(images, shape), images, shape.heads)
        with pytest.raises(BenchError, match="does not take"):
            attention(tokens(images, shape), images, shape.heads, StreamKernel(shape, 128))
    with pytest.raises(BenchError, match="bfloat16"):
        attention(tokens(1, Shape(64, 2, 64)).float(), 1, 2)
