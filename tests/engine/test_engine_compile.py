"""What can be checked of the kernels without a GPU: they compile, they fit, and a machine without one is told so."""

import itertools

import pytest
import torch

from robuq_bench.engine.kernels import (
    adaln,
    block_rotation,
    choice,
    conditioning,
    gemm,
    jit,
    last,
    modulations,
    packing,
    rotate_quantize,
)
from robuq_bench.engine.kernels.bitserial import NEXT_BYTES, source_and_macros
from robuq_bench.engine.kernels.rowwise import SignedPlan, plan, team_plan
from robuq_bench.engine.kernels.rowwise import source_and_macros as rowwise_source
from robuq_bench.engine.kernels.tiles import MmaTile, SingleTile, StreamTile
from robuq_bench.errors import BenchError

SHARED = {"sm_80": 166912, "sm_89": 101376, "sm_90a": 232448}  # bytes a block can have
SIZES = [(4, 32), (12, 32), (24, 32), (48, 32), (48, 64), (32, 32), (32, 128), (36, 32), (36, 128), (9, 128), (1, 128)]


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate"])
@pytest.mark.parametrize(
    ("arch", "tile"),
    [
        ("sm_80", MmaTile(128, 2, 9, 3)),
        ("sm_90a", StreamTile(3, 3, 9, 4)),
        ("sm_90a", StreamTile(3, 1, 9, 2)),
        ("sm_90a", StreamTile(3, 1, 9, 3, turns=True)),
        ("sm_90a", SingleTile(128, 2, 1)),
        ("sm_90a", SingleTile(64, 1, 3)),
        ("sm_90a", SingleTile(64, 1, 3, 3)),
    ],
)
@pytest.mark.parametrize(("rank", "following"), [(1, 0), (2, 2)])
def test_gemm_compiles(compiler, arch, tile, epilogue, rank, following):
    source, macros = source_and_macros(tile, 1152, epilogue, rank, True, following)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("rows", "columns", "rank", "center"), [(36, 32, True, False), (9, 128, False, True)])
def test_adaln_compiles(compiler, arch, rows, columns, rank, center):
    source, macros = adaln.source_and_macros(rows, columns, 4, rank, center, True, 4, 2)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [(conditioning, (1152, 256)), (conditioning, (128, 128)), (last, (1152, 32, 2)), (last, (384, 64, 4))],
)
def test_what_is_outside_the_blocks_compiles(compiler, arch, kernel, sizes):
    source, macros = kernel.source_and_macros(*sizes)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


@pytest.mark.parametrize(("arch", "shared"), SHARED.items())
@pytest.mark.parametrize(
    ("size", "pre", "center", "levels"),
    [
        ((36, 32), "modulate", True, "midrise"),
        ((36, 128), "gelu", False, "midtread"),
        ((48, 64), "none", False, "midrise"),
    ],
)
def test_rowwise_compiles(compiler, arch, shared, size, pre, center, levels):
    source, macros = rowwise_source(plan(*size, shared), 2, pre, True, center, levels, 1)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


@pytest.mark.parametrize(("bits", "center", "levels"), [(2, False, "midrise"), (4, True, "midtread")])
def test_rowwise_compiles_for_signed_tokens(compiler, bits, center, levels):
    source, macros = rowwise_source(SignedPlan(36, 128), bits, "none", False, center, levels, 1)
    assert jit.compile_cubin(source, "sm_90a", macros).startswith(b"\x7fELF")


@pytest.mark.parametrize("m", [512, 16384])
@pytest.mark.parametrize(
    ("columns", "pre", "center", "levels"),
    [(32, "modulate", True, "midrise"), (128, "gelu", False, "midtread"), (128, "none", False, "midrise")],
)
def test_rowwise_compiles_for_hopper(compiler, m, columns, pre, center, levels):
    chosen = team_plan(36, columns, pre, m, 256, 132)
    source, macros = rowwise_source(chosen, 4, pre, True, center, levels, 1)
    assert jit.compile_cubin(source, "sm_90a", macros).startswith(b"\x7fELF")


@pytest.mark.parametrize("size", SIZES)
def test_every_width_finds_a_plan_that_fits(size):
    rows, columns = size
    for shared in SHARED.values():
        chosen = plan(*size, shared)
        assert chosen.blocks * chosen.shared(4, "none") < shared and 64 % chosen.tokens == 0
        assert chosen.warps * 16 >= 4 * rows and chosen.warps <= 32 and 64 <= columns * chosen.layers <= 128


@pytest.mark.parametrize("m", [1, 512, 16384])
def test_hopper_plans_fit_and_no_others_exist(m):
    for (rows, columns), pre in itertools.product(SIZES, ("none", "modulate")):
        chosen = team_plan(rows, columns, pre, m, 64, 132)
        assert (chosen is not None) == (rows == 36 and (pre == "none" or columns == 32))
        if chosen:
            static = 2 * chosen.warps * chosen.tokens * 64 + 2048  # the down-projection's sums, and the others
            assert chosen.blocks * (chosen.shared(4, pre) + static) < SHARED["sm_90a"] and 64 % chosen.tokens == 0
    assert team_plan(36, 32, "modulate", m, 6, 132) is None  # a team's four tokens would be of two images


def test_the_plan_for_signed_tokens_fits():
    chosen = SignedPlan(36, 128)
    assert chosen.blocks * (chosen.shared(4, "none") + 3072) < SHARED["sm_90a"] + 1024


def test_machine_code_is_kept_on_disk_and_used_again(compiler, monkeypatch):
    source = 'extern "C" __global__ void nothing() {}'
    first = jit.compile_cubin(source, "sm_80")
    assert [path.suffix for path in compiler.iterdir()] == [".cubin"]
    monkeypatch.setattr(jit, "_compile", None)
    assert jit.compile_cubin(source, "sm_80") == first


def test_a_kernel_that_does_not_compile_says_why(compiler):
    with pytest.raises(BenchError, match="does_not_exist"):
        jit.compile_cubin('extern "C" __global__ void k() { does_not_exist(); }', "sm_80")
    assert not list(compiler.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_message_says_what_is_needed():
    x = packing.pack_activation(torch.zeros(2, 128, dtype=torch.int64), 2, torch.ones(2))
    weight = packing.pack_weight(torch.zeros(2, 128), torch.ones(2))
    layer = adaln.AdalnLayer(block_rotation(128), torch.zeros(64, 128), torch.ones(64), torch.zeros(64))
    with pytest.raises(BenchError, match="NVIDIA GPU"):
        gemm(x, weight)
    with pytest.raises(BenchError, match="NVIDIA GPU"):
        rotate_quantize(torch.zeros(2, 128).bfloat16(), block_rotation(128), 2)
    with pytest.raises(BenchError, match="NVIDIA GPU"):
        modulations(torch.zeros(2, 128).bfloat16(), adaln.pack_adaln([layer], 4))


@pytest.mark.parametrize("k", [128, 384, 768, 1024, 1152, 1536, 3072, 4096, 4608])
@pytest.mark.parametrize(("arch", "shared"), SHARED.items())
def test_every_width_finds_a_tile_that_fits(arch, shared, k):
    for m in (1, 256, 4096, 100_000):
        assert choice.default_tile(arch, m, 4608, k, 2, 132, shared).fits(k // 128, 2, shared)
    assert all(tile.fits(k // 128, 2, shared) for tile in choice.candidates(arch, 4608, k, 2, shared))


@pytest.mark.parametrize("k", [128, 384, 768, 1024, 1152, 1536])
@pytest.mark.parametrize(("arch", "shared"), SHARED.items())
def test_what_the_next_layer_wants_fits_beside_every_tile_of_fc1(arch, shared, k):
    rule = [choice.default_tile(arch, m, 4 * k, k, 2, 132, shared) for m in (1, 256, 4096, 100_000)]
    for tile in rule + choice.candidates(arch, 4 * k, k, 2, shared):
        assert tile.fits(k // 128, 2, shared - tile.bn * NEXT_BYTES[2]), tile


def test_too_wide_a_layer_is_refused():
    with pytest.raises(BenchError, match="shared memory"):
        choice.default_tile("sm_90a", 64, 64, 1 << 15, 2, 132, 232448)
