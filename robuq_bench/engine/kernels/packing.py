"""Packed operands of the bit-serial product: weights as two bit planes, activation codes as one plane a bit.

A *unit* is 128 channels: 16 bytes of one bit plane, bit j of word i being channel 32 i + j. Rows of one unit are stored
next to each other, 64 or 128 rows at a time, so that the kernels copy whole pieces without strides or bank conflicts:

    activations  int32 [ceil(M / 64), bits, K / 128, 64, 4]
    weights      int32 [ceil(N / 128), K / 128, 2, 128, 4]     plane 0 is P = [w = +1], plane 1 is Q = NOT [w = -1]

K is padded to a multiple of 128 with code 0 and P = Q = 0, which add nothing to any popcount; M and N are padded too.
Weight rows are permuted inside each group of 32, see `channel_order`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robuq_bench.errors import BenchError

ROWS = 64  # tokens that lie together
CHANNELS = 128  # output channels that lie together
UNIT = 128
RANK = 16


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def channel_order(n: int) -> Tensor:
    """order [n] int64, n a multiple of 32: packed row i holds output channel order[i].

    Row 8 j + p of a group of 32 holds channel 8 (p // 2) + 2 j + p % 2, so that the eight accumulators a thread gets
    from four n8 tensor-core tiles are eight neighbouring channels, stored with one 16-byte access.
    """
    i = torch.arange(n)
    j, p = i % 32 // 8, i % 8
    return i // 32 * 32 + 8 * (p // 2) + 2 * j + p % 2


def pack_bits(bits: Tensor) -> Tensor:
    """bool [..., 32 n] -> int32 [..., n]: element j of a group goes to bit j."""
    words = bits.reshape(*bits.shape[:-1], -1, 32).long() << torch.arange(32, device=bits.device)
    words = words.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack_bits(words: Tensor) -> Tensor:
    """int32 [..., n] -> bool [..., 32 n], the inverse of `pack_bits`."""
    bits = words.long()[..., None] >> torch.arange(32, device=words.device) & 1
    return bits.reshape(*words.shape[:-1], -1).bool()


def settle(constant: Tensor) -> None:
    """Wait until a kernel's constant is written: kernels read constants before they wait for the kernel before them."""
    if constant.is_cuda:
        torch.cuda.current_stream(constant.device).synchronize()


def _pad(x: Tensor, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2]))


@dataclass(frozen=True)
class PackedWeight:
    """A ternary linear layer [n, k] on one device. Vectors are float32 and padded to a multiple of 128."""

    planes: Tensor
    alpha: Tensor
    weight_sum: Tensor
    bias: Tensor
    up: Tensor | None  # int32 [n_padded * 8]: bf16 pairs in the order of mma fragments
    n: int
    k: int
    next_flips: Tensor | None = None  # int16 [n]: the sign bit where the next layer negates an output
    next_down: Tensor | None = None  # `pack_next` of the next layer's low-rank branch


@dataclass(frozen=True)
class PackedActivation:
    """Quantised tokens [m, k]: level of code c in token i is step[i] * (c + shift) + offset[i].

    step and offset are float32 [m], code_sum int32 [m]. down is the input of the low-rank branch: bfloat16 [m, 16], or
    the sums, int32, that the product before leaves of it (`empty_sums`).
    """

    planes: Tensor
    code_sum: Tensor
    step: Tensor
    m: int
    k: int
    bits: int
    shift: float
    offset: Tensor | None = None
    down: Tensor | None = field(default=None)


def pack_weight(
    ternary: Tensor,
    alpha: Tensor,
    bias: Tensor | None = None,
    up: Tensor | None = None,
    next_flips: Tensor | None = None,
    next_down: Tensor | None = None,
) -> PackedWeight:
    """Pack weights: ternary [n, k] of -1, 0, +1; alpha [n]; bias [n]; up [n, 16], the low-rank branch's second factor;
    next_flips, next_down: the signs and `pack_next` of the layer that takes the n outputs, a multiple of 128.

    Raises BenchError when k is no multiple of 32, a weight is not ternary, the rank is not 16, or the next layer is of
    another width.
    """
    n, k = ternary.shape
    if k % 32:
        raise BenchError(f"a packed layer needs a multiple of 32 input channels, not {k}")
    if not bool(((ternary >= -1) & (ternary <= 1) & (ternary == ternary.round())).all()):
        raise BenchError("a packed layer needs weights -1, 0 and +1")
    if up is not None and tuple(up.shape) != (n, RANK):
        raise BenchError(f"the low-rank branch needs [{n}, {RANK}], not {list(up.shape)}")
    for part, each in ((next_flips, 1), (next_down, RANK)):
        if part is not None and (part.numel() != n * each or n % CHANNELS):
            raise BenchError(f"the next layer takes {part.numel() // each} channels, not {n}, or no multiple of 128")
    rows, columns = _ceil(n, CHANNELS) * CHANNELS, _ceil(k, UNIT) * UNIT
    order = channel_order(rows).to(ternary.device)
    both = torch.stack([_pad(ternary == 1, rows, columns), _pad(ternary != -1, rows, columns)])[:, order]
    words = pack_bits(both).reshape(2, rows // CHANNELS, CHANNELS, columns // UNIT, 4)

    def vector(x: Tensor | None) -> Tensor:
        x = torch.zeros(n, device=ternary.device) if x is None else x
        return torch.nn.functional.pad(x.detach().float(), (0, rows - n)).contiguous()

    packed = PackedWeight(
        planes=words.permute(1, 3, 0, 2, 4).contiguous(),
        alpha=vector(alpha),
        weight_sum=vector(ternary.sum(-1, dtype=torch.float64).float()),
        bias=vector(bias),
        up=None if up is None else _pack_up(_pad(up, rows, RANK)[order]),
        n=n,
        k=k,
        next_flips=next_flips,
        next_down=next_down,
    )
    settle(packed.planes)
    return packed


def _pack_up(up: Tensor) -> Tensor:
    """[rows, 16], already permuted -> int32 [rows * 8]: for each n8 tile, lane (g, t), pairs t, t + 4 of row g."""
    pairs = up.detach().to(torch.bfloat16).contiguous().view(torch.int32).reshape(-1, 8, 2, 4)  # tile, g, half, t
    return pairs.permute(0, 1, 3, 2).reshape(-1).contiguous()


def empty_sums(m: int, device: torch.device) -> Tensor:
    """What `gemm` adds m tokens' sums of the next layer's low-rank branch to, once cleared; see `pack_sums`."""
    return torch.empty(_ceil(m, ROWS) * (ROWS // 16), 8, 32, dtype=torch.int32, device=device)


def pack_sums(values: Tensor) -> Tensor:
    """int32 [m, 16] -> [m up to 64 / 16, 8, 32], as tensor cores leave sums: [tile][4 h + 2 half + e][8 t + g] is rank
    8 half + g of token 8 h + 2 t + e of sixteen. Zeros past the last token.
    """
    rows = _ceil(len(values), ROWS) * ROWS
    parts = _pad(values, rows, RANK).reshape(-1, 2, 4, 2, 2, 8)  # tile, h, t, e, half, g
    return parts.permute(0, 1, 4, 3, 2, 5).reshape(-1, 8, 32).contiguous()


def unpack_sums(sums: Tensor, m: int) -> Tensor:
    """The inverse: int32 [m, 16]."""
    parts = sums.reshape(-1, 2, 2, 2, 4, 8)  # tile, h, half, e, t, g
    return parts.permute(0, 1, 4, 3, 2, 5).reshape(-1, RANK)[:m]


def pack_activation(
    codes: Tensor,
    bits: int,
    step: Tensor,
    shift: float | None = None,
    offset: Tensor | None = None,
    down: Tensor | None = None,
) -> PackedActivation:
    """Pack codes [m, k] in 0 .. 2^bits - 1; shift defaults to the mid-rise -(2^bits - 1) / 2; down is [m, 16].

    Raises BenchError when k is no multiple of 32, bits is not 1 to 4, or a code is out of range.
    """
    m, k = codes.shape
    if k % 32 or bits not in (1, 2, 3, 4):
        raise BenchError(f"packing needs a multiple of 32 channels and 1 to 4 bits, not {k} and {bits}")
    if m and not bool(((codes >= 0) & (codes < 2**bits)).all()):
        raise BenchError(f"codes of {bits} bits lie in 0 .. {2**bits - 1}")
    rows, columns = _ceil(m, ROWS) * ROWS, _ceil(k, UNIT) * UNIT
    planes = torch.stack([_pad(codes.long() >> i & 1, rows, columns).bool() for i in range(bits)])
    words = pack_bits(planes).reshape(bits, rows // ROWS, ROWS, columns // UNIT, 4)
    return PackedActivation(
        planes=words.permute(1, 0, 3, 2, 4).contiguous(),
        code_sum=codes.sum(-1).int(),
        step=step.detach().float().contiguous(),
        m=m,
        k=k,
        bits=bits,
        shift=-(2**bits - 1) / 2 if shift is None else shift,
        offset=None if offset is None else offset.detach().float().contiguous(),
        down=None if down is None else down.detach().to(torch.bfloat16).contiguous(),
    )


def unpack_activation(packed: PackedActivation) -> Tensor:
    """The codes [m, k], int64."""
    bits = unpack_bits(packed.planes.permute(1, 0, 3, 2, 4).reshape(packed.bits, -1, packed.planes.shape[2] * 4))
    weights = 2 ** torch.arange(packed.bits, device=bits.device)
    return (bits.long() * weights[:, None, None]).sum(0)[: packed.m, : packed.k]


def unpack_weight(packed: PackedWeight) -> Tensor:
    """The ternary weights [n, k], int64."""
    units = packed.planes.shape[1]
    p, q = unpack_bits(packed.planes.permute(2, 0, 3, 1, 4).reshape(2, -1, units * 4)).long()
    natural = torch.empty_like(p)
    natural[channel_order(len(p)).to(p.device)] = p + q - 1
    return natural[: packed.n, : packed.k]
