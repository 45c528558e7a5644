"""Attention with 8-bit operands: near the exact one, known answers, gradients."""

import torch
from torch.nn import functional as F

from robuq_bench.quant.attention import EightBitAttention


def operands(tokens: int = 16, width: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, tokens, width, generator=generator) for _ in range(3)]


def test_error_is_that_of_eight_bits():
    query, key, value = operands()
    exact = F.scaled_dot_product_attention(query, key, value)
    error = (EightBitAttention()(query, key, value) - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.015


def test_equal_scores_average_the_values():
    """Five equal scores: each probability is 1/5 = 51/255, on the grid; values on theirs: the exact mean."""
    value = torch.tensor([127.0, -3.0, 8.0, 0.0, 3.0])[None, None, :, None].expand(1, 1, 5, 4)
    actual = EightBitAttention()(torch.zeros(1, 1, 5, 4), torch.ones(1, 1, 5, 4), value)
    torch.testing.assert_close(actual, torch.full((1, 1, 5, 4), 27.0))


def test_probabilities_have_steps_of_one_in_255():
    """Two tokens, scores 0 and s: the output is the rounded probability of the token whose value is 127."""
    score = 1.0
    query, key = torch.ones(1, 1, 2, 1), torch.tensor([[[[score], [0.0]]]])
    value = torch.tensor([[[[127.0], [0.0]]]])
    rounded = round(float(torch.sigmoid(torch.tensor(score))) * 255) / 255
    torch.testing.assert_close(EightBitAttention()(query, key, value)[0, 0, :, 0] / 127, torch.full((2,), rounded))


def test_values_are_scaled_per_channel_over_tokens():
    """A channel of small values keeps its own scale beside one of large values."""
    _, _, value = operands()
    value = value * torch.logspace(-4, 4, 24)
    zeros = torch.zeros_like(value)
    exact = value.mean(-2, keepdim=True).expand_as(value)
    error = (EightBitAttention()(zeros, zeros, value) - exact).abs().amax((0, 1, 2))
    assert (error / value.abs().amax((0, 1, 2)) < 0.01).all()


def test_gradients_flow_as_without_quantisation():
    exact, quantised = ([t.clone().requires_grad_() for t in operands()] for _ in range(2))
    outer = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    F.scaled_dot_product_attention(*exact).backward(outer)
    EightBitAttention()(*quantised).backward(outer)
    for mine, theirs in zip(quantised, exact, strict=True):
        assert (mine.grad - theirs.grad).norm() < 0.03 * theirs.grad.norm()
