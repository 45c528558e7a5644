"""The bit-serial product on the GPU: choice of kernel and tile, checks, launch."""

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight
from robuq_bench.errors import BenchError

EPILOGUES = ("none", "gelu", "gate")
STATIC = 2048  # bytes of shared memory that the kernels and the driver take besides
POINTERS = (
    "activations",
    "weights",
    "code_sum",
    "step",
    "offset",
    "alpha",
    "weight_sum",
    "bias",
    "down",
    "up",
    "gate",
    "residual",
    "out",
)


class _Arguments(ctypes.Structure):
    """`struct Gemm` of gemm_common.cuh."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("m", "n", "bits", "gate_rows")]
        + [("shift", ctypes.c_float)]
    )


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: `bn` channels; `workers` groups of 128 threads, each with `stages` of `chunk` units."""

    backend: str
    bn: int
    workers: int
    chunk: int
    stages: int

    @property
    def bm(self) -> int:
        return 128 if self.backend == "mma" else 64

    def shared_bytes(self, units: int, rank: bool) -> int:
        ring = self.workers * self.stages * self.chunk * self.bm * 16
        return units * 2 * self.bn * 16 + ring + self.bn * (16 + 32 * rank) + 64


def wgmma_source(bn: int) -> str:
    """The one instruction of the Hopper kernel, 64 x bn x 256 bits: its operand list is too long to write by hand."""
    count = bn // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+r"((&d[0][0])[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void wgmma(int (&d)[{bn // 8}][4], unsigned long long a, unsigned long long w) {{
  asm volatile("{{\\n.reg .pred add;\\nsetp.eq.u32 add, 0, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{bn}k256.s32.b1.b1.and.popc {{{registers}}}, "
               "%{count}, %{count + 1}, add;\\n}}"
               : {operands} : "l"(a), "l"(w));
}}
"""


def source_and_macros(tile: Tile, k: int, epilogue: str, rank: bool, offset: bool) -> tuple[str, dict[str, int]]:
    """What NVRTC is given for one kernel; `k` is the padded number of input channels."""
    main = "gemm_mma.cu" if tile.backend == "mma" else "gemm_wgmma.cu"
    middle = "" if tile.backend == "mma" else wgmma_source(tile.bn)
    macros = {
        "UNITS": k // 128,
        "BM": tile.bm,
        "BN": tile.bn,
        "WORKERS": tile.workers,
        "CHUNK": tile.chunk,
        "STAGES": tile.stages,
        "LOWRANK": int(rank),
        "OFFSET": int(offset),
        "EPILOGUE": EPILOGUES.index(epilogue),
    }
    return jit.read_source("gemm_common.cuh") + middle + jit.read_source(main), macros


@functools.cache
def _kernel(tile: Tile, k: int, epilogue: str, rank: bool, offset: bool, device: torch.device) -> jit.Kernel:
    source, macros = source_and_macros(tile, k, epilogue, rank, offset)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    return jit.Kernel(cubin, "gemm", tile.shared_bytes(k // 128, rank), device)


def gemm(
    x: PackedActivation,
    weight: PackedWeight,
    *,
    epilogue: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """y = dequantised(x) @ dequantised(weight).T + bias + down @ up.T, bfloat16 [m, n], on torch's current stream.

    The integer product is exact; the scales, the low-rank branch and the epilogue are float32, rounded once at the end.
    epilogue: "none"; "gelu" (tanh form); "gate", out = gate[i // (m / images)] * y + residual, with gate bfloat16
    [images, n] and residual bfloat16 [m, n]. `out`, if given, is overwritten. `tile` overrides the choice of kernel.
    Raises BenchError on operands that do not fit each other, no GPU, or one older than sm_80.
    """
    device = x.planes.device
    arch = jit.architecture(device)
    _check_operands(x, weight, epilogue, gate, residual)
    rank = x.down is not None and weight.up is not None
    out = torch.empty(x.m, weight.n, dtype=torch.bfloat16, device=device) if out is None else out
    if out.shape != (x.m, weight.n) or out.dtype != torch.bfloat16 or not out.is_contiguous():
        raise BenchError(f"out must be a contiguous bfloat16 [{x.m}, {weight.n}]")
    if out.numel() == 0:
        return out
    k = x.planes.shape[2] * 128
    tile = tile or choose_tile(arch, x.m, weight.n, k, rank, *_limits(device))
    tensors = [x.planes, weight.planes, x.code_sum, x.step, x.offset, weight.alpha, weight.weight_sum, weight.bias]
    tensors += [x.down if rank else None, weight.up if rank else None, gate, residual, out]
    gate_rows = x.m // len(gate) if gate is not None else 1
    arguments = _Arguments(*map(jit.pointer, tensors), x.m, weight.n, x.bits, gate_rows, x.shift)
    tiles = -(-x.m // tile.bm) * -(-weight.n // tile.bn)
    kernel = _kernel(tile, k, epilogue, rank, x.offset is not None, device)
    kernel(min(tiles, _limits(device)[0]), tile.workers * 128, arguments)
    return out


@functools.cache
def _limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory a block may take)."""
    facts = torch.cuda.get_device_properties(device)
    return facts.multi_processor_count, facts.shared_memory_per_block_optin


def choose_tile(arch: str, m: int, n: int, k: int, rank: bool, processors: int, shared: int) -> Tile:
    """The tile for a shape, by the measurements in docs/engine.md.

    Raises BenchError when not even the narrowest tile's weights fit into shared memory.
    """
    units, workers, widths = k // 128, 2, (128, 64)
    backend = "wgmma" if arch == "sm_90a" else "mma"
    if backend == "wgmma":
        tiles = -(-m // 64) * -(-n // 128) / processors  # tiles of a block
        workers = 3 if tiles > (32 if units < 16 else 16) else 4
        widths = (64,) if tiles < 8 else (128, 64)
    for bn in widths:
        for chunk in (c for c in range(min(9, units), 0, -1) if units % c == 0):
            for stages in (4, 3, 2):
                tile = Tile(backend, bn, workers, chunk, stages)
                if tile.shared_bytes(units, rank) <= shared - STATIC:
                    return tile
    raise BenchError(f"{k} input channels do not fit into {shared} bytes of shared memory")


def _check_operands(
    x: PackedActivation, weight: PackedWeight, epilogue: str, gate: Tensor | None, residual: Tensor | None
) -> None:
    if epilogue not in EPILOGUES:
        raise BenchError(f"unknown epilogue '{epilogue}'; allowed: {', '.join(EPILOGUES)}")
    if x.k != weight.k or x.planes.device != weight.planes.device:
        raise BenchError(
            f"activations of {x.k} channels on {x.planes.device} do not fit weights of {weight.k} channels"
            f" on {weight.planes.device}"
        )
    if (x.down is None) != (weight.up is None):
        raise BenchError("the low-rank branch needs both factors: `down` with the tokens and `up` with the weights")
    if (epilogue == "gate") != (gate is not None and residual is not None):
        raise BenchError("gate and residual go with the epilogue 'gate', both of them")
    for name, tensor, shape in (("gate", gate, None), ("residual", residual, (x.m, weight.n))):
        if tensor is None:
            continue
        fits = tensor.shape == shape if shape else tensor.ndim == 2 and tensor.shape[1] == weight.n
        if not fits or tensor.dtype != torch.bfloat16 or not tensor.is_contiguous() or tensor.device != x.planes.device:
            raise BenchError(f"{name} must be a contiguous bfloat16 tensor on {x.planes.device} that fits the output")
    if gate is not None and (not len(gate) or x.m % len(gate)):
        raise BenchError(f"{x.m} tokens cannot be shared out evenly among {len(gate)} rows of gate")
