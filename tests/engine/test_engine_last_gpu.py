"""The last linear's kernel on a GPU against float64, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from robuq_bench.engine.kernels.last import last_linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def operands(batch, side, width, outputs):
    generator = torch.Generator("cuda").manual_seed(width + side)
    random = {"device": "cuda", "generator": generator}
    tokens = (torch.randn(batch * side * side, width, **random) * 3 + 2).bfloat16()
    weight = (torch.randn(batch, outputs, width, **random) / width**0.5).bfloat16()
    return tokens, weight, torch.randn(batch, outputs, **random)


def expected(tokens, weight, bias, patch, epsilon):
    batch, _, width = weight.shape
    side = round((len(tokens) / batch) ** 0.5)
    normal = F.layer_norm(tokens.double(), (width,), eps=epsilon).view(batch, -1, width)
    values = normal @ weight.double().transpose(1, 2) + bias.double()[:, None]
    patches = values.view(batch, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return patches.reshape(batch, -1, side * patch, side * patch)


@pytest.mark.parametrize(
    ("batch", "side", "width", "outputs", "patch"),
    [(2, 16, 1152, 32, 2), (3, 4, 128, 16, 2), (1, 8, 384, 64, 4), (2, 16, 1024, 16, 2), (1, 32, 768, 32, 2)],
)
def test_it_is_layer_norm_linear_and_patches(batch, side, width, outputs, patch):
    tokens, weight, bias = operands(batch, side, width, outputs)
    want = expected(tokens, weight, bias, patch, 1e-6)
    mine = last_linear(tokens, weight, bias, patch, 1e-6)
    assert mine.shape == want.shape and (mine - want).norm() < 3e-3 * want.norm()  # tokens are rounded to 2^-9


def test_epsilon_counts():
    tokens, weight, bias = operands(1, 4, 128, 16)
    want = expected(tokens, weight, bias, 2, 5.0)
    assert (last_linear(tokens, weight, bias, 2, 5.0) - want).norm() < 3e-3 * want.norm()


def test_what_does_not_fit_is_refused(refused):
    tokens, weight, bias = operands(2, 4, 128, 16)
    refused(lambda: last_linear(tokens[:24], weight, bias, 2, 1e-6), "does not take")
    refused(lambda: last_linear(tokens, weight[:, :8].contiguous(), bias[:, :8], 2, 1e-6), "does not take")
    refused(lambda: last_linear(tokens.float(), weight, bias, 2, 1e-6), "bfloat16")
    refused(
        lambda: last_linear(tokens, weight.transpose(1, 2).contiguous().transpose(1, 2), bias, 2, 1e-6), "contiguous"
    )
