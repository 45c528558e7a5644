"""What the fused path takes over, and the constants that it hands to its kernels; the kernels need a GPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robuq_bench.config.recipe import LowRank
from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant import fused, fused_attention
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.fused_attention import _columns, _tile, covers
from robuq_bench.quant.hadamard import block_width, rotate
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser

COVERED = {"robuq", "robuq_uniform", "baseline", "bitnet_v2", "plain_qat", "quest_stable"}
STATISTICS = {
    0: lambda x: x.abs().mean(-1, keepdim=True),
    1: lambda x: x.square().mean(-1, keepdim=True).sqrt(),
    2: lambda x: x.abs().amax(-1, keepdim=True),
    3: lambda x: x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True),
    4: lambda x: x.abs().mean(-1, keepdim=True),
}
"""What a rule of the kernels computes from a row; 4 refits the step afterwards."""


def test_the_headline_recipes_are_covered(each_row, variant):
    """At DiT's widths: the tests' model is too narrow for the kernels."""
    name, method = each_row.split("/")[0], variant(each_row).method
    if name not in COVERED:
        return
    bits = variant(each_row).weight_bits, variant(each_row).activation_bits
    assert fused.covers(Quantiser(method.weight, bits[0]), "channel")
    assert fused.covers(Quantiser(method.activation, bits[1]), "token")
    for n in (384, 1152, 1536, 4608):
        assert fused.tables(n, block_width(n, method.rotation.kind) if method.rotation else None) is not None


def test_what_is_not_covered_takes_the_plain_path(converted):
    """Static ranges, weight-only and smoothed recipes; widths whose right factor is too small for a tensor core."""
    assert fused.tables(48, 48) is None
    for row in ("quest_selective/W4A4", "terdit/W1.58A32", "svdquant_ptq/W4A4"):
        assert not any(layer.fused for layer in quant_linears(converted(row)).values()), row
    spec = Spec(format="midrise", granularity="token", scale="rms")
    for change in ({"granularity": "group"}, {"granularity": "tensor"}, {"centre": True}, {"format": "lloyd_max"}):
        assert not fused.covers(Quantiser(spec.model_copy(update=change), 2), "token"), change


@pytest.mark.parametrize(("n", "kind"), [(384, "full"), (1152, "full"), (4608, "full"), (384, "block-128")])
def test_tables_rotate(n, kind):
    """A tile of whole tokens, one below the other: left^T X right is the rotation of each."""
    width = block_width(n, kind)
    left, right = (table.double() for table in fused.tables(n, width))
    height = n // len(right)
    group = fused.SIDE // height
    x = torch.randn(group, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tile = torch.zeros(fused.SIDE, len(right), dtype=torch.float64)
    tile[: group * height] = x.view(-1, len(right))
    mixed = (left.T @ tile if len(left) else tile) @ right / width**0.5
    torch.testing.assert_close(mixed[: group * height].view(group, n), rotate(x, width))


@pytest.mark.parametrize(
    ("format", "scale", "bits"),
    [
        ("midrise", "mean_abs", 2),
        ("midrise", "rms", 3),
        ("midrise", "absmax", 4),
        ("midtread", "absmax", 8),
        ("midtread", "absmean", 4),
        ("asymmetric", "minmax", 2),
        ("ternary", "absmean", 1.58),
        ("ternary", "conditional_mean", 1.58),
    ],
)
def test_numbers_say_what_the_quantiser_does(format, scale, bits):
    """The kernels' arithmetic in five lines, against the quantiser itself."""
    quantiser = Quantiser(Spec(format=format, granularity="token", scale=scale), bits)
    assert fused.covers(quantiser, "token")
    statistic, _ = fused.rule(quantiser)
    factor, low, high, shift = fused.numbers(quantiser)
    x = torch.randn(5, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cell = step = STATISTICS[statistic](x) * factor
    offset = x.amin(-1, keepdim=True) if statistic == 3 else 0.0
    codes = ((x - offset) / cell - shift).round().clamp(low, high)
    if statistic == 4:
        step = (x * codes).sum(-1, keepdim=True) / codes.abs().sum(-1, keepdim=True)
    torch.testing.assert_close((codes + shift) * step + offset, quantiser(x))


def test_a_stretched_grid_is_known_to_the_kernels():
    plain, wide = (
        fused.numbers(Quantiser(Spec(format="midrise", granularity="token", scale="rms", stretch=stretch), 2))
        for stretch in (1, 0.8)
    )
    assert wide == pytest.approx([0.8 * plain[0], *plain[1:]])


def test_on_a_cpu_the_plain_path_computes_bit_for_bit_what_it_always_did():
    """Under autocast too: x H, quantised, times the quantised weight, plus bias and branch."""
    torch.manual_seed(0)
    weight = Quantiser(Spec(format="ternary", granularity="channel", scale="conditional_mean"), 1.58)
    inputs = Quantiser(Spec(format="midrise", granularity="token", scale="mean_abs"), 2)
    signs = torch.randint(0, 2, (384,), dtype=torch.int8) * 2 - 1
    layer = QuantLinear(nn.Linear(384, 64), weight, inputs, "full", signs, LowRank(rank=16))
    assert layer.fused
    x = torch.randn(3, 20, 384)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
            hidden = (x * signs).reshape(-1, 12, 32)
            hidden = torch.matmul(layer.left.float().T, torch.matmul(hidden, layer.right.float())).reshape(x.shape)
            y = F.linear(inputs(hidden), weight(layer.weight), layer.bias).reshape(-1, 64)
            y = torch.addmm(y, F.linear(hidden, layer.down).reshape(-1, 16), layer.up.T).view(3, 20, 64)
            assert torch.equal(layer(x), y)


def test_constants_follow_the_quantisers():
    """A profile tries other widths on a layer; a stored model has no weight quantiser."""
    weight = Quantiser(Spec(format="ternary", granularity="channel", scale="conditional_mean"), 1.58)
    inputs = Quantiser(Spec(format="midrise", granularity="token", scale="mean_abs"), 2)
    layer = QuantLinear(nn.Linear(384, 64), weight, inputs, "full")
    assert layer.fused and layer.fused_numbers[1].tolist() == pytest.approx(fused.numbers(inputs))
    rules = layer.fused_rules
    layer.activation_quantiser = Quantiser(inputs.spec, 4)
    assert layer.fused_numbers[1].tolist() == pytest.approx([1.2533141 * 0.3352006, -8, 7, 0.5])
    assert layer.fused_rules == rules, "bits alone make no other graph"
    layer.weight_quantiser = None
    assert not layer.fused


@pytest.mark.parametrize(("channels", "columns"), [(72, (64, 16)), (64, (64, 0)), (48, (32, 16)), (24, (16, 16))])
def test_columns_of_a_head(channels, columns):
    assert tuple(_columns(channels).values()) == columns


def test_what_attention_kernels_take():
    """Heads of 16 to 128 channels; tokens that tiles of 16 divide."""
    assert [covers(256, channels) for channels in (8, 16, 72, 128, 144)] == [False, True, True, True, False]
    assert [covers(tokens, 64) for tokens in (8, 64, 100, 144, 256, 600, 1024)] == [
        False,
        True,
        False,
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("tokens", "rows", "chunk"), [(64, 64, 64), (144, 16, 16), (256, 128, 256), (1024, 128, 256)])
def test_tiles_divide_the_tokens(tokens, rows, chunk):
    tile = _tile(tokens, 128, 256)
    assert (tile["ROWS"], tile["CHUNK"]) == (rows, chunk)


def test_no_kernel_takes_a_float_at_run_time(monkeypatch):
    """torch.compile hands a float on as a double, and the whole kernel then computes in doubles, ten times slower."""
    pytest.importorskip("triton")
    launches = []

    class Launch:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: launches.append(arguments)

    for module in (fused, fused_attention):
        monkeypatch.setattr(module, "wrap_triton", lambda kernel: Launch())
    weight = Quantiser(Spec(format="ternary", granularity="channel", scale="conditional_mean"), 1.58)
    inputs = Quantiser(Spec(format="midrise", granularity="token", scale="mean_abs", estimator="trust"), 2)
    layer = QuantLinear(nn.Linear(384, 64), weight, inputs, "full", None, LowRank(rank=16))
    fused.linear(torch.randn(20, 384, requires_grad=True), layer).sum().backward()
    operands = torch.randn(3, 1, 2, 16, 24, requires_grad=True)
    fused_attention.attend(operands).sum().backward()
    assert len(launches) == 10
    assert not any(isinstance(argument, float) for arguments in launches for argument in arguments)


def test_only_a_gpu_takes_the_fused_path(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.bfloat16)
    assert not fused.active(torch.ones(2))
