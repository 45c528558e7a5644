"""The fused path of the quantised linear on a GPU against the plain path in float32: outputs and all gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from robuq_bench.config.recipe import LowRank
from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant.attention import EightBitAttention
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def weights(format: str, scale: str, bits: float, estimator: str = "ste", granularity: str = "channel") -> Quantiser:
    return Quantiser(Spec(format=format, granularity=granularity, scale=scale, estimator=estimator), bits)


def inputs(format: str, scale: str, bits: int, estimator: str = "ste") -> Quantiser:
    return Quantiser(Spec(format=format, granularity="token", scale=scale, estimator=estimator), bits)


TERNARY = weights("ternary", "conditional_mean", 1.58)
ROBUQ = (TERNARY, inputs("midrise", "mean_abs", 2), "full", True, 16)
CASES = {
    "robuq": ROBUQ,
    "robuq W4A4": (weights("midrise", "mean_abs", 4), inputs("midrise", "mean_abs", 4), "full", True, 16),
    "baseline": (TERNARY, inputs("asymmetric", "minmax", 2), "full", True, 16),
    "quest": (weights("midrise", "rms", 3, "trust"), inputs("midrise", "rms", 3, "trust"), "block-128", False, 0),
    "bitnet": (
        weights("ternary", "absmean", 1.58, granularity="tensor"),
        inputs("midtread", "absmean", 4),
        "full",
        False,
        0,
    ),
    "plain": (weights("ternary", "absmean", 1.58), inputs("asymmetric", "minmax", 4), None, False, 0),
    "absmax": (weights("midtread", "absmax", 4), inputs("midtread", "absmax", 4, "clipped"), None, False, 0),
    "masked branch": (TERNARY, inputs("midrise", "rms", 3, "clipped"), "full", True, 4),
}
SIZES = [(384, 1152), (1152, 384), (1536, 384), (4608, 1152)]


def layer(case: tuple, n: int, m: int, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    weight, activation, rotation, signed, rank = case
    signs = torch.randint(0, 2, (n,), dtype=torch.int8) * 2 - 1 if signed else None
    branch = LowRank(rank=rank, init="zero") if rank else None
    made = QuantLinear(nn.Linear(n, m, bias=bias), weight, activation, rotation, signs, branch)
    if rank:
        nn.init.normal_(made.up, std=0.05)
    return made.cuda()


def outcome(made: QuantLinear, x: Tensor, outer: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Output and gradients; bfloat16 inputs, so that both paths see the same numbers."""
    made.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = made(x)
    y.backward(outer.to(y.dtype))
    return {"y": y.detach().float(), "x": x.grad.float()} | {k: p.grad.clone() for k, p in made.named_parameters()}


def errors(made: QuantLinear, tokens: int) -> dict[str, float]:
    generator = torch.Generator("cuda").manual_seed(1)
    out, n = made.weight.shape
    x = torch.randn(2, tokens // 2, n, device="cuda", generator=generator).bfloat16().float()
    outer = torch.randn(2, tokens // 2, out, device="cuda", generator=generator).bfloat16().float()
    assert made.fused
    plain, fused = (outcome(made, x, outer, autocast) for autocast in (False, True))
    return {name: ((fused[name] - plain[name]).norm() / plain[name].norm()).item() for name in plain}


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [32, 2048])
def test_output_and_gradients_are_those_of_the_plain_path(name, n, m, tokens):
    """Few tokens: gradients are rotated back; many: the weights. Codes at a cell's edge may fall to either side."""
    found = errors(layer(CASES[name], n, m), tokens)
    for part, error in found.items():
        assert error < (0.05 if part in ("y", "weight") else 0.02), found


def test_without_bias():
    assert max(errors(layer(ROBUQ, 384, 384, bias=False), 512).values()) < 0.05


def test_rows_that_fill_no_tile():
    assert max(errors(layer(ROBUQ, 384, 384), 1234).values()) < 0.05


@pytest.mark.parametrize(("tokens", "channels"), [(256, 72), (256, 64), (64, 64), (64, 24), (144, 48), (1024, 72)])
def test_attention_and_its_gradients_are_those_of_the_plain_path(tokens, channels):
    generator = torch.Generator("cuda").manual_seed(0)
    joint = torch.randn(3, tokens, 3, 4, channels, device="cuda", generator=generator).bfloat16()
    outer = torch.randn(3, 4, tokens, channels, device="cuda", generator=generator).bfloat16()

    def outcome(autocast: bool) -> tuple[Tensor, Tensor]:
        leaf = joint.clone().to(torch.bfloat16 if autocast else torch.float32).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = EightBitAttention().joint(leaf.permute(2, 0, 3, 1, 4))
        y.backward(outer.to(y.dtype))
        return y.detach().float(), leaf.grad.float()

    for plain, fused in zip(outcome(False), outcome(True), strict=True):
        assert (fused - plain).norm() < 0.01 * plain.norm()


def test_inputs_of_any_layout():
    """A transposed input, as patches leave it, and a slice of wider rows."""
    made = layer(ROBUQ, 384, 384)
    x = torch.randn(2, 64, 384, device="cuda").bfloat16()
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.cat([x, x], -1)[..., :384]
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        assert torch.equal(made(x), made(transposed)) and torch.equal(made(x), made(sliced))


def test_layers_that_differ_in_bits_share_one_compiled_graph():
    torch.compiler.reset()
    counters.clear()
    x = torch.randn(64, 384, device="cuda")
    for bits in (1, 2, 3, 4):
        made = layer((TERNARY, inputs("midrise", "mean_abs", bits), "full", True, 16), 384, 384)
        with torch.autocast("cuda", torch.bfloat16):
            expected = made(x)
            made.compile(fullgraph=True)
            torch.testing.assert_close(made(x), expected, rtol=0.02, atol=0.02)
    assert counters["stats"]["unique_graphs"] == 1
