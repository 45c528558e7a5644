"""The bit-serial product on the GPU: checks and launch."""

import ctypes
import functools

import torch
from torch import Tensor

from robuq_bench.engine.kernels import choice, jit
from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight
from robuq_bench.engine.kernels.tiles import Tile
from robuq_bench.errors import BenchError

EPILOGUES = ("none", "gelu", "gate")
NEXT_BYTES = (0, 2, 34)  # of shared memory for what the next layer wants of an output channel
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
    "next_flips",
    "next_down",
    "next_sums",
    "gate",
    "residual",
    "out",
)


class _Arguments(ctypes.Structure):
    """`struct Gemm` of gemm_common.cuh."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("m", "n", "bits", "gate_rows", "gate_stride", "aligned")]
        + [("shift", ctypes.c_float)]
    )


def source_and_macros(
    tile: Tile, k: int, epilogue: str, rank: int, offset: bool, following: int = 0
) -> tuple[str, dict[str, int]]:
    """What NVRTC is given for one kernel; `k` is the padded number of input channels.

    rank: 0 without low-rank branch, 1 when `PackedActivation.down` is of bfloat16, 2 when it is of sums. following: 0,
    1 with the next layer's signs, 2 with its low-rank branch as well.
    """
    text, macros = tile.source()
    common = {"UNITS": k // 128, "BM": tile.bm, "BN": tile.bn, "WORKERS": tile.workers, "NEXT": following}
    common |= {"LOWRANK": int(rank), "OFFSET": int(offset), "EPILOGUE": EPILOGUES.index(epilogue)}
    return text, macros | common


@functools.cache
def _kernel(
    tile: Tile, k: int, bits: int, epilogue: str, rank: int, offset: bool, following: int, device: torch.device
) -> jit.Kernel:
    source, macros = source_and_macros(tile, k, epilogue, rank, offset, following)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    shared = tile.shared_bytes(k // 128, bits) + tile.bn * NEXT_BYTES[following]
    return jit.Kernel(cubin, "gemm", shared, device)


def gemm(
    x: PackedActivation,
    weight: PackedWeight,
    *,
    epilogue: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    sums: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """y = dequantised(x) @ dequantised(weight).T + bias + down @ up.T, bfloat16 [m, n], on torch's current stream.

    The integer product is exact; the scales, the low-rank branch and the epilogue are float32, rounded once at the end.
    epilogue: "none"; "gelu" (tanh form); "gate", out = gate[i // (m / images)] * y + residual, with gate bfloat16
    [images, n], of which rows may be any distance apart, and residual bfloat16 [m, n]. `out`, if given, is overwritten;
    it may be `residual` itself. Where the weights bring the next layer's signs (`pack_weight`), y is multiplied by them
    last; where they bring its down-projection, what that makes of y as stored is added to `sums` (`empty_sums`), which
    somebody has cleared. `tile` overrides the choice of kernel. Weights must not be written just before: the kernel
    reads them ahead of the stream's order. Raises BenchError on operands that do not fit each other, no GPU, or
    one older than sm_80.
    """
    device = x.planes.device
    jit.architecture(device)
    _check_operands(x, weight, epilogue, gate, residual)
    _check_sums(x, weight, sums)
    rank, following, k = _rank(x), _following(weight, sums), x.planes.shape[2] * 128
    out = torch.empty(x.m, weight.n, dtype=torch.bfloat16, device=device) if out is None else out
    if out.shape != (x.m, weight.n) or out.dtype != torch.bfloat16 or not out.is_contiguous():
        raise BenchError(f"out must be a contiguous bfloat16 [{x.m}, {weight.n}]")
    if out.numel() == 0:
        return out
    tile = tile or choice.tile_for(device, x.m, weight.n, k, x.bits)
    tensors = [x.planes, weight.planes, x.code_sum, x.step, x.offset, weight.alpha, weight.weight_sum, weight.bias]
    tensors += [x.down, weight.up, weight.next_flips, weight.next_down, sums, gate, residual, out]
    images, stride = (1, 0) if gate is None else (len(gate), gate.stride(0))
    aligned = weight.n % 8 == 0 and stride % 8 == 0 and all(t is None or t.data_ptr() % 16 == 0 for t in tensors[-3:])
    blocks = tile.blocks(x.m, weight.n, choice.limits(device)[0])
    arguments = _Arguments(*map(jit.pointer, tensors), x.m, weight.n, x.bits, x.m // images, stride, aligned, x.shift)
    kernel = _kernel(tile, k, x.bits, epilogue, rank, x.offset is not None, following, device)
    kernel(blocks, tile.threads, arguments)
    return out


def _rank(x: PackedActivation) -> int:
    """LOWRANK of gemm_common.cuh."""
    return 0 if x.down is None else 2 if x.down.dtype == torch.int32 else 1


def _following(weight: PackedWeight, sums: Tensor | None) -> int:
    """NEXT of gemm_common.cuh."""
    return 0 if weight.next_flips is None else 1 if sums is None else 2


def _check_sums(x: PackedActivation, weight: PackedWeight, sums: Tensor | None) -> None:
    if (sums is None) != (weight.next_down is None):
        raise BenchError("the next layer's low-rank branch needs both: its down-projection in the weights, and `sums`")
    like = None if sums is None else (-(-x.m // 64) * 4, 8, 32)
    if sums is not None and (tuple(sums.shape) != like or sums.dtype != torch.int32 or not sums.is_contiguous()):
        raise BenchError(f"sums of {x.m} tokens are a contiguous int32 {list(like)}, see `empty_sums`")


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
        dense = tensor.is_contiguous() if shape else tensor.stride(-1) == 1
        if not fits or tensor.dtype != torch.bfloat16 or not dense or tensor.device != x.planes.device:
            raise BenchError(f"{name} must be bfloat16 on {x.planes.device}, its rows dense, and fit the output")
    if gate is not None and (not len(gate) or x.m % len(gate)):
        raise BenchError(f"{x.m} tokens cannot be shared out evenly among {len(gate)} rows of gate")
