"""The quantised linear: its parts without quantisers, and the low-rank branch against Eckart-Young."""

from itertools import product

import pytest
import torch
from torch import nn

from robuq_bench.config.recipe import LowRank
from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant.hadamard import signs_matrix
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser

TERNARY = Quantiser(Spec(format="ternary", granularity="channel", scale="conditional_mean"), 1.58)
TWO_BITS = Quantiser(Spec(format="midrise", granularity="token", scale="mean_abs"), 2)


def linear(inputs: int = 48, outputs: int = 32, bias: bool = True, dtype=torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def signs(inputs: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (inputs,), generator=generator, dtype=torch.int8) * 2 - 1


def tokens(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("rotation", [None, "full", "block-128"])
@pytest.mark.parametrize("branch", [None, LowRank(rank=5, init="svd"), LowRank(rank=5, init="zero")])
def test_without_quantisers_nothing_changes(rotation, branch):
    for signed, bias in product([False, True], [False, True]):
        layer = QuantLinear(linear(bias=bias), None, None, rotation, signs() if signed else None, branch)
        for x in (tokens(7, 48), tokens(2, 3, 48)):
            torch.testing.assert_close(layer(x), linear(bias=bias)(x), rtol=1e-5, atol=2e-6)


def test_without_quantisers_nothing_changes_in_float64():
    x = tokens(7, 48, dtype=torch.float64)
    expected = linear(dtype=torch.float64)(x)
    for rotation, branch in product([None, "full", "block-128"], [None, LowRank(rank=5)]):
        layer = QuantLinear(linear(dtype=torch.float64), None, None, rotation, signs() if rotation else None, branch)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rotation", [None, "full"])
def test_the_given_linear_is_left_as_it_is(rotation):
    plain = linear()
    QuantLinear(plain, None, None, rotation, low_rank=LowRank(rank=5))
    assert torch.equal(plain.weight, linear().weight)


def test_forward_is_the_formula():
    """y = Qa(h) Qw(W)^T + (h down^T) up^T + bias with h = (x * signs) H, with a dense H."""
    plain, x = linear(), tokens(7, 48)
    layer = QuantLinear(plain, TERNARY, TWO_BITS, "full", signs(), LowRank(rank=5))
    hadamard = signs_matrix(48).float() / 48**0.5
    hidden = (x * signs()) @ hadamard
    residual = (plain.weight * signs()) @ hadamard - layer.up @ layer.down
    torch.testing.assert_close(layer.weight.data, residual.data, rtol=1e-5, atol=1e-6)
    expected = TWO_BITS(hidden) @ TERNARY(residual).T + hidden @ layer.down.T @ layer.up.T + plain.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(48, 32, 1), (48, 32, 16), (48, 96, 16), (192, 48, 47)])
@pytest.mark.parametrize("rotation", [None, "full"])
def test_branch_is_the_best_approximation_of_its_rank(inputs, outputs, rank, rotation):
    """Eckart-Young: what remains has the norm of the singular values left out; rotation keeps them."""
    values = torch.linalg.svdvals(linear(inputs, outputs).weight.detach())
    own = signs(inputs) if rotation else None
    layer = QuantLinear(linear(inputs, outputs), None, None, rotation, own, LowRank(rank=rank))
    assert layer.up.shape == (outputs, rank) and layer.down.shape == (rank, inputs)
    torch.testing.assert_close(layer.weight.norm(), values[rank:].norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight, 2), values[rank], rtol=1e-4, atol=1e-5)


def test_branch_is_split_evenly():
    """A = U sqrt(S), B = sqrt(S) V^T (paper-facts 1.4): both factors have the Gram matrix S."""
    layer = QuantLinear(linear(), None, None, "full", signs(), LowRank(rank=5))
    values = torch.linalg.svdvals(linear().weight.detach())[:5]
    torch.testing.assert_close(layer.up.T @ layer.up, values.diag(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.down @ layer.down.T, values.diag(), rtol=1e-4, atol=1e-5)


def test_zero_branch_starts_silent_and_can_learn():
    layer = QuantLinear(linear(), TERNARY, TWO_BITS, "full", signs(), LowRank(rank=5, init="zero"))
    bare = QuantLinear(linear(), TERNARY, TWO_BITS, "full", signs())
    assert torch.equal(layer(tokens(7, 48)), bare(tokens(7, 48)))
    layer(tokens(7, 48)).sum().backward()
    assert layer.up.grad.abs().max() > 0


@pytest.mark.parametrize("rank", [32, 33, 100])
def test_rank_that_does_not_fit_is_refused(rank, refused):
    refused(lambda: QuantLinear(linear(), None, None, low_rank=LowRank(rank=rank)), "low_rank.rank", rank, "32x48")


def test_branch_sees_the_unquantised_input():
    """With a zero weight the output is the branch alone: linear in the input, whatever the bits."""
    layer = QuantLinear(linear(bias=False), TERNARY, TWO_BITS, "full", signs(), LowRank(rank=5))
    with torch.no_grad():
        layer.weight.zero_()
    x = tokens(7, 48)
    torch.testing.assert_close(layer(1.37 * x), 1.37 * layer(x), rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    layer = QuantLinear(linear(), TERNARY, TWO_BITS, "full", signs(), LowRank(rank=5))
    x = tokens(7, 48).requires_grad_()
    layer(x).square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert x.grad.any()


def test_straight_through_gradient_of_the_weight():
    """As if the layer were linear in the quantised input: dL/dW = outer^T Qa(h)."""
    layer = QuantLinear(linear(), TERNARY, TWO_BITS, "full", signs())
    x, outer = tokens(7, 48), tokens(7, 32)
    layer(x).backward(outer)
    torch.testing.assert_close(layer.weight.grad, outer.T @ TWO_BITS(layer.rotate(x)), rtol=1e-5, atol=1e-5)


def test_smoothing_moves_a_factor_from_the_input_to_the_weight():
    smooth = torch.logspace(-1, 1, 48)
    layer = QuantLinear(linear(), None, None, "full", signs(), LowRank(rank=5), smooth=smooth)
    torch.testing.assert_close(layer(tokens(7, 48)), linear()(tokens(7, 48)), rtol=1e-4, atol=1e-5)
    seen = QuantLinear(linear(), None, TWO_BITS, smooth=smooth)
    expected = TWO_BITS(tokens(7, 48) / smooth) @ (linear().weight * smooth).T + linear().bias
    torch.testing.assert_close(seen(tokens(7, 48)), expected, rtol=1e-4, atol=1e-5)


def test_gain_multiplies_the_quantised_weight_and_is_trained():
    """TerDiT's scalar per layer (paper-facts 5), here from 1."""
    absmean = Quantiser(Spec(format="ternary", granularity="tensor", scale="absmean", gain=True), 1.58)
    layer = QuantLinear(linear(), absmean, None)
    before = layer(tokens(7, 48)) - layer.bias
    with torch.no_grad():
        layer.gain.fill_(1.5)
    after = layer(tokens(7, 48)) - layer.bias
    torch.testing.assert_close(after, 1.5 * before)
    after.sum().backward()
    torch.testing.assert_close(layer.gain.grad, before.sum().reshape(1), rtol=1e-4, atol=1e-4)
