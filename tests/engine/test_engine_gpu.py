"""The bit-serial GEMM and the INT8 path on a GPU: integers against int64, epilogues against float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq_bench.engine.kernels import (
    choice,
    gemm,
    jit,
    pack_activation,
    pack_next,
    pack_weight,
    rotate_quantize,
)
from robuq_bench.engine.kernels.int8 import gemm_int8, int8_weight
from robuq_bench.engine.kernels.packing import empty_sums, pack_sums, unpack_sums
from robuq_bench.engine.kernels.reference import gemm_reference, integer_product, sums_reference
from robuq_bench.engine.kernels.tiles import MmaTile, SingleTile, StreamTile, Tile
from robuq_bench.engine.kernels.tune import tune
from robuq_bench.engine.support import kernel_rotation
from robuq_bench.errors import BenchError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WIDTHS = [96, 128, 384, 768, 1024, 1152, 1536, 3072, 4096, 4608]


def tiles(n: int, k: int, bits: int) -> list[Tile]:
    """The widest tile of each sort that this GPU can run: portable, streaming (three ways), single, single along K."""
    k = -(-k // 128) * 128
    found = {}
    for tile in choice.candidates(jit.architecture(), n, k, bits, choice.limits(torch.device("cuda", 0))[1]):
        sorts = {MmaTile: "mma", StreamTile: "stream", SingleTile: "single"}
        ways = getattr(tile, "side", 1) > 1, getattr(tile, "turns", False), getattr(tile, "k_split", 1) > 1
        found[sorts[type(tile)], *ways] = tile
    return list(found.values())


def exact_integers(x, weight, tile: Tile) -> torch.Tensor:
    """All bits of the product, although outputs are bfloat16: what rounding took off is computed by a second launch."""
    high = gemm(x, weight, tile=tile)
    ones = torch.ones(1, weight.n, dtype=torch.bfloat16, device="cuda")
    low = gemm(x, weight, epilogue="gate", gate=ones, residual=-high, tile=tile)
    return (high.double() + low.double()).long()


def operands(m, n, k, bits, seed, *, codes=None, ternary=None):
    generator = torch.Generator("cuda").manual_seed(seed)
    random = {"device": "cuda", "generator": generator}
    codes = torch.randint(0, 2**bits, (m, k), **random) if codes is None else codes
    ternary = torch.randint(-1, 2, (n, k), **random) if ternary is None else ternary
    return codes, ternary


def check_integers(m, n, k, bits, codes, ternary):
    x = pack_activation(codes, bits, torch.ones(m, device="cuda"), shift=0.0)
    weight = pack_weight(ternary, torch.ones(n, device="cuda"))
    for tile in tiles(n, k, bits):
        assert torch.equal(exact_integers(x, weight, tile), integer_product(codes, ternary)), tile


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_integers_equal_int64_at_every_width(k, bits):
    check_integers(333, 200, k, bits, *operands(333, 200, k, bits, k + bits))


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 700), n=st.integers(1, 700), bits=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_integers_equal_int64_at_random_shapes(m, n, bits, seed):
    check_integers(m, n, 384, bits, *operands(m, n, 384, bits, seed))


@pytest.mark.parametrize(
    ("k", "bits", "tile"), [(1152, 2, SingleTile(64, 1, 3, 3)), (4608, 3, SingleTile(64, 1, 1, 36))]
)
def test_integers_whatever_the_pieces_of_k(k, bits, tile):
    codes, ternary = operands(333, 200, k, bits, k)
    x = pack_activation(codes, bits, torch.ones(333, device="cuda"), shift=0.0)
    weight = pack_weight(ternary, torch.ones(200, device="cuda"))
    assert torch.equal(exact_integers(x, weight, tile), integer_product(codes, ternary))


@pytest.mark.parametrize("value", [-1, 1])
@pytest.mark.parametrize("bits", [1, 4])
def test_integers_of_extreme_codes(value, bits):
    codes = torch.full((130, 4608), 2**bits - 1, device="cuda")
    ternary = torch.full((72, 4608), value, device="cuda")
    check_integers(130, 72, 4608, bits, codes, ternary)


def test_many_tiles_and_runs_share_one_block():
    check_integers(5000, 3456, 128, 2, *operands(5000, 3456, 128, 2, 5))


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate"])
@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 1152, 1152), (333, 203, 1536), (64, 8, 96)])
def test_epilogues_agree_with_float64_and_overwrite_everything(m, n, k, rank, epilogue):
    codes, ternary = operands(m, n, k, 3, 7)
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(8)}
    step, alpha = torch.rand(m, **random) / 10, torch.rand(n, **random) / 10
    up, down = (torch.randn(rows, 16, **random) if rank else None for rows in (n, m))
    x = pack_activation(codes, 3, step, offset=torch.randn(m, **random) / 50, down=down)
    weight = pack_weight(ternary, alpha, torch.randn(n, **random), up)
    images = 3 if m % 3 == 0 else 2
    given_ = {}
    if epilogue == "gate":
        given_ = {
            "gate": torch.randn(images, 3 * n, **random).bfloat16()[:, n : 2 * n],  # rows lie apart
            "residual": torch.randn(m, n, **random).bfloat16(),
        }
    expected = gemm_reference(x, weight, epilogue, **given_)
    for tile in tiles(n, k, 3):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
        assert gemm(x, weight, epilogue=epilogue, out=out, tile=tile, **given_) is out
        # One rounding to bfloat16 is at most 2^-8 relative; 2e-3 absolute covers tanh.approx and cancellation.
        torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("epilogue", ["none", "gelu"])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 1536, 384), (333, 384, 1536), (8, 4608, 96)])
def test_signs_and_sums_for_the_next_layer(m, n, k, epilogue):
    """Integers to the last one but for rounding what a tile adds and its float32 sums; the same bits every time."""
    codes, ternary = operands(m, n, k, 2, 17)
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(18)}
    turn = kernel_rotation(n, "full", torch.randint(0, 2, (n,), **random) * 2 - 1)
    down = torch.randn(16, n, **random) * torch.logspace(-2, 2, 16, device="cuda")[:, None]
    down[13:] = 0
    packed_down, _ = pack_next(down, turn)
    step, alpha = torch.rand(m, **random) / 10, torch.rand(n, **random) / 10
    x = pack_activation(codes, 2, step, down=torch.randn(m, 16, **random))
    rest = (alpha, torch.randn(n, **random), torch.randn(n, 16, **random))
    weight, plain = pack_weight(ternary, *rest, turn.flips, packed_down), pack_weight(ternary, *rest)
    matrix = sums_reference(torch.eye(n, device="cuda"), packed_down).T
    for tile in tiles(n, k, 2):
        sums = empty_sums(m, codes.device).fill_(-7)
        rotate_quantize(torch.zeros(3, n, device="cuda").bfloat16(), turn, 2, clears=sums)
        assert not sums.any()
        out = gemm(x, weight, epilogue=epilogue, sums=sums, tile=tile)
        unsigned = torch.where(turn.flips < 0, -out, out)
        assert torch.equal(unsigned, gemm(x, plain, epilogue=epilogue, tile=tile))
        found, expected = unpack_sums(sums, m), sums_reference(out, packed_down)
        limit = n / 32 + 2**-20 * (out.double().abs() @ matrix.abs().T)
        assert ((found - expected).abs() <= limit).all() and not found[:, 13:].any()
        again = torch.zeros_like(sums)
        gemm(x, weight, epilogue=epilogue, sums=again, tile=tile)
        assert torch.equal(unpack_sums(again, m), found)


@pytest.mark.parametrize("epilogue", ["none", "gate"])
def test_a_branch_that_comes_as_sums(epilogue):
    m, n, k = 333, 203, 384
    codes, ternary = operands(m, n, k, 2, 19)
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(20)}
    low = torch.randint(-(2**31), 2**31 - 1, (m, 16), **random).int()
    x = replace(pack_activation(codes, 2, torch.rand(m, **random) / 10), down=pack_sums(low))
    up = torch.randn(n, 16, **random) * 2.0**-30
    weight = pack_weight(ternary, torch.rand(n, **random) / 10, torch.randn(n, **random), up)
    more = {"gate": torch.randn(3, n, **random).bfloat16(), "residual": torch.randn(m, n, **random).bfloat16()}
    more = more if epilogue == "gate" else {}
    expected = gemm_reference(x, weight, epilogue, **more)
    for tile in tiles(n, k, 2):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
        gemm(x, weight, epilogue=epilogue, out=out, tile=tile, **more)
        torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-3)


def test_the_residual_stream_is_updated_in_place():
    m, n, k = 1000, 1152, 384
    codes, ternary = operands(m, n, k, 2, 9)
    x = pack_activation(codes, 2, torch.rand(m, device="cuda"))
    weight = pack_weight(ternary, torch.rand(n, device="cuda") / 10)
    gate, stream = torch.randn(5, n, device="cuda").bfloat16(), torch.randn(m, n, device="cuda").bfloat16()
    expected = gemm_reference(x, weight, "gate", gate, stream)
    for tile in tiles(n, k, 2):
        out = stream.clone()
        gemm(x, weight, epilogue="gate", gate=gate, residual=out, out=out, tile=tile)
        torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize(("m", "n"), [(4096, 1152), (16384, 3456), (2000, 4608)])
def test_shares_of_large_outputs_cover_them_once(m, n):
    """Whatever way tiles are shared out among blocks (next_run): poisoned outputs, integers against float64."""
    codes, ternary = operands(m, n, 128, 1, 11)
    x, weight = (
        pack_activation(codes, 1, torch.ones(m, device="cuda"), shift=0.0),
        pack_weight(ternary, torch.ones(n, device="cuda")),
    )
    expected = integer_product(codes, ternary)  # at most 128 in size: exact in bfloat16
    for tile in tiles(n, 128, 1):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
        assert torch.equal(gemm(x, weight, out=out, tile=tile).long(), expected), tile


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate"])
def test_int8_path_is_the_same_function(epilogue):
    m, n, k = 333, 200, 416
    codes, ternary = operands(m, n, k, 3, 7)
    x = pack_activation(codes, 3, torch.rand(m, device="cuda") / 10, down=torch.randn(m, 16, device="cuda"))
    weight = pack_weight(ternary, torch.rand(n, device="cuda") / 10, None, torch.randn(n, 16, device="cuda"))
    more = {}
    if epilogue == "gate":
        more = {
            "gate": torch.randn(3, n, device="cuda").bfloat16(),
            "residual": torch.randn(m, n, device="cuda").bfloat16(),
        }
    out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
    gemm_int8(x, int8_weight(weight), epilogue=epilogue, out=out, **more)
    torch.testing.assert_close(out.double(), gemm_reference(x, weight, epilogue, **more), rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize("bits", [1, 4])
def test_int8_integers_equal_int64(bits):
    m, n, k = 130, 72, 4608
    codes, ternary = operands(m, n, k, bits, 3, codes=torch.full((m, k), 2**bits - 1, device="cuda"))
    x = pack_activation(codes, bits, torch.ones(m, device="cuda"), shift=0.0)
    weight = int8_weight(pack_weight(ternary, torch.ones(n, device="cuda")))
    high = gemm_int8(x, weight)
    ones = torch.ones(1, n, dtype=torch.bfloat16, device="cuda")
    low = gemm_int8(x, weight, epilogue="gate", gate=ones, residual=-high)
    assert torch.equal((high.double() + low.double()).long(), integer_product(codes, ternary))


def test_tuning_keeps_the_fastest_and_measures_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUQ_BENCH_CACHE", str(tmp_path))
    device, shape = torch.device("cuda", 0), choice.Shape(128, 256, 128, 2)
    choice.choices.cache_clear()
    assert "by rule" in choice.explain(device, 100, 256, 128, 2)
    [first] = tune([shape], device)
    assert first.us[str(first.tile)] == min(us for name, us in first.us.items() if name != "int8")
    assert choice.tile_for(device, 100, 256, 128, 2) == first.tile
    assert "measured" in choice.explain(device, 100, 256, 128, 2)
    choice.choices.cache_clear()  # as a new process would
    assert tune([shape], device) == [first]
    choice.choices.cache_clear()


def test_launches_follow_the_current_stream_and_graphs():
    codes, ternary = operands(128, 128, 128, 2, 1)
    x = pack_activation(codes, 2, torch.ones(128, device="cuda"))
    weight = pack_weight(ternary, torch.ones(128, device="cuda"))
    expected = gemm(x, weight)
    out, graph = torch.zeros_like(expected), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gemm(x, weight, out=out)
    assert not out.any()
    graph.replay()
    assert torch.equal(out, expected)


def test_operands_that_do_not_fit_are_refused():
    codes, ternary = operands(64, 64, 128, 2, 1)
    x = pack_activation(codes, 2, torch.ones(64, device="cuda"))
    weight = pack_weight(ternary, torch.ones(64, device="cuda"))
    with pytest.raises(BenchError, match="do not fit"):
        gemm(x, pack_weight(torch.zeros(64, 256, device="cuda"), torch.ones(64, device="cuda")))
    with pytest.raises(BenchError, match="epilogue"):
        gemm(x, weight, epilogue="relu")
    with pytest.raises(BenchError, match="gate"):
        gemm(x, weight, epilogue="gate")
    with pytest.raises(BenchError, match="bfloat16"):
        gemm(x, weight, out=torch.empty(64, 64, device="cuda"))
    with pytest.raises(BenchError, match="low-rank"):
        gemm(x, pack_weight(ternary, torch.ones(64, device="cuda"), up=torch.zeros(64, 16, device="cuda")))
    with pytest.raises(BenchError, match="next layer's low-rank"):
        gemm(x, weight, sums=empty_sums(64, codes.device))
    turn = kernel_rotation(128, "full", torch.ones(128, device="cuda"))
    packed_down, _ = pack_next(torch.ones(16, 128, device="cuda"), turn)
    wide = pack_weight(ternary.repeat(2, 1), torch.ones(128, device="cuda"), None, None, turn.flips, packed_down)
    with pytest.raises(BenchError, match="next layer's low-rank"):
        gemm(x, wide)
    with pytest.raises(BenchError, match="sums of 64 tokens"):
        gemm(x, wide, sums=empty_sums(65, codes.device))
    with pytest.raises(BenchError, match="INT8"):
        int8_weight(wide)
    with pytest.raises(BenchError, match="INT8"):
        gemm_int8(replace(x, down=empty_sums(64, codes.device)), int8_weight(weight))
