"""The product on the INT8 tensor cores, in Triton: for GPUs or shapes where the single-bit one is slower."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight, unpack_weight
from robuq_bench.engine.kernels.reference import unpack_up
from robuq_bench.errors import BenchError

EPILOGUES = {"none": 0, "gelu": 1, "gate": 2}


@dataclass(frozen=True)
class Int8Tile:
    """How the kernel is cut: `bm` tokens x `bn` channels, `bk` input channels at a time."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


def int8_tiles(m: int) -> list[Int8Tile]:
    """Tiles worth measuring for m tokens."""
    if m <= 1024:
        return [Int8Tile(64, 64, 128, 4, 4), Int8Tile(64, 128, 128, 4, 3)]
    return [Int8Tile(128, 128, 128, 8, 3), Int8Tile(128, 256, 128, 8, 3)]


@dataclass(frozen=True)
class Int8Weight:
    """A ternary linear layer: int8 [n, k up to a multiple of 128], vectors float32 [n], up bfloat16 [n, 16]."""

    ternary: Tensor
    alpha: Tensor
    weight_sum: Tensor
    bias: Tensor
    up: Tensor | None
    n: int
    k: int


def int8_weight(weight: PackedWeight) -> Int8Weight:
    """The same layer, four times as large in memory. Raises BenchError when its outputs are made for the next layer."""
    if weight.next_flips is not None:
        raise BenchError("the INT8 path does not do the next layer's signs")
    ternary = unpack_weight(weight).to(torch.int8)
    padded = torch.nn.functional.pad(ternary, (0, weight.planes.shape[1] * 128 - weight.k)).contiguous()
    vectors = (part[: weight.n] for part in (weight.alpha, weight.weight_sum, weight.bias))
    return Int8Weight(padded, *vectors, None if weight.up is None else unpack_up(weight), weight.n, weight.k)


def _kernels():
    try:
        from robuq_bench.engine.kernels import int8_kernels
    except ImportError as error:
        raise BenchError(f"the INT8 kernels need Triton, which cannot be imported: {error}") from None
    return int8_kernels


def unpack_codes(x: PackedActivation) -> Tensor:
    """The codes, int8 [m, k up to a multiple of 128], on torch's current stream."""
    units = x.planes.shape[2]
    codes = torch.empty(x.m, units * 128, dtype=torch.int8, device=x.planes.device)
    _kernels().unpack[(-(-x.m // 16), units)](x.planes, codes, x.m, UNITS=units, BITS=x.bits)
    return codes


def gemm_int8(
    x: PackedActivation,
    weight: Int8Weight,
    *,
    epilogue: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    tile: Int8Tile = Int8Tile(128, 128, 128, 8, 3),
) -> Tensor:
    """`gemm` on the INT8 tensor cores: the same meaning, exactness and result, from the same tokens.

    Raises BenchError when the tokens bring sums for the low-rank branch, or Triton is missing.
    """
    if x.down is not None and x.down.dtype != torch.bfloat16:
        raise BenchError("the INT8 path takes the low-rank branch in bfloat16, not as sums")
    out = torch.empty(x.m, weight.n, dtype=torch.bfloat16, device=x.planes.device) if out is None else out
    rank = x.down is not None and weight.up is not None
    blocks = -(-x.m // tile.bm) * -(-weight.n // tile.bn)
    _kernels().product[(blocks,)](
        unpack_codes(x), weight.ternary, x.step, x.offset, weight.alpha, weight.weight_sum, weight.bias,
        x.down, weight.up, gate, residual, out,
        x.m, weight.n, 1 if gate is None else x.m // len(gate), 0 if gate is None else gate.stride(0), x.shift,
        K=weight.ternary.shape[1], EPILOGUE=EPILOGUES[epilogue], OFFSET=x.offset is not None, RANK=rank,
        BM=tile.bm, BN=tile.bn, BK=tile.bk, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
