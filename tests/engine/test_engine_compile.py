"""What can be checked of the kernels without a GPU: they compile, they fit, and a machine without one is told so."""

import pytest
import torch

from robuq_bench.engine.kernels import (
    block_rotation,
    choose_tile,
    full_rotation,
    gemm,
    jit,
    packing,
    reference,
    rotate_quantize,
)
from robuq_bench.engine.kernels.bitserial import Tile, source_and_macros
from robuq_bench.engine.kernels.rowwise import source_and_macros as rowwise_source
from robuq_bench.errors import BenchError
from robuq_bench.quant import hadamard


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    try:
        jit.nvrtc()
    except BenchError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("ROBUQ_BENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate"])
@pytest.mark.parametrize(("arch", "backend"), [("sm_80", "mma"), ("sm_90a", "wgmma")])
def test_gemm_compiles(compiler, arch, backend, epilogue):
    tile = Tile(backend, 128, 3 if backend == "wgmma" else 2, 9, 3)
    source, macros = source_and_macros(tile, 1152, epilogue, True, True)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("pre", ["none", "modulate", "gelu"])
def test_rowwise_compiles(compiler, arch, pre):
    source, macros = rowwise_source(36, 32, 2, pre, True, True)
    assert jit.compile_cubin(source, arch, macros).startswith(b"\x7fELF")


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
    with pytest.raises(BenchError, match="NVIDIA GPU"):
        gemm(x, weight)
    with pytest.raises(BenchError, match="NVIDIA GPU"):
        rotate_quantize(torch.zeros(2, 128).bfloat16(), block_rotation(128), 2)


@pytest.mark.parametrize("k", [128, 384, 768, 1024, 1152, 1536, 3072, 4096, 4608])
@pytest.mark.parametrize(("arch", "shared"), [("sm_80", 166912), ("sm_89", 101376), ("sm_90a", 232448)])
def test_every_width_finds_a_tile_that_fits(arch, shared, k):
    for m in (1, 256, 4096, 100_000):
        tile = choose_tile(arch, m, 4608, k, True, 132, shared)
        assert tile.shared_bytes(k // 128, True) <= shared
        assert k // 128 % tile.chunk == 0


def test_too_wide_a_layer_is_refused():
    with pytest.raises(BenchError, match="shared memory"):
        choose_tile("sm_90a", 64, 64, 1 << 15, True, 132, 232448)


@pytest.mark.parametrize("width", [384, 768, 1024, 1152, 1536, 3072, 4096, 4608])
def test_the_kernels_rotation_is_the_packages(width):
    orders = {36: (1152, 4608), 12: (384, 768, 1536, 3072), 1: (1024, 4096)}
    base = next(order for order, widths in orders.items() if width in widths)
    x, signs = torch.randn(3, width).bfloat16(), torch.randint(0, 2, (width,)) * 2 - 1
    for rotation, kind in (
        (full_rotation(hadamard.signs_matrix(base), width, signs), "full"),
        (block_rotation(width, signs), "block"),
    ):
        rotated = reference.rotate_quantize_reference(x, rotation, 2, dtype=torch.float64)["rotated"]
        expected = hadamard.rotate((x * signs).double(), hadamard.block_width(width, kind))
        torch.testing.assert_close(rotated, expected, atol=1e-6, rtol=1e-6)


def test_rotations_that_do_not_fit_are_refused():
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(12), 96)
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(36), 1280)
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(36), 9216)
    with pytest.raises(BenchError, match="not supported"):
        block_rotation(200)
