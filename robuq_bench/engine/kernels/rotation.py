"""Rotations in the form that the row-wise kernel applies: a small matrix over rows, butterflies over columns, signs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robuq_bench.engine.kernels.packing import RANK, pack_bits, settle
from robuq_bench.errors import BenchError

SUM = 2.0**22  # most that sums in integers reach with tokens of size one


@dataclass(frozen=True)
class Rotation:
    """x -> signs * x, seen as X [rows, columns] -> mix.T @ X @ H_columns * norm (row-vector convention x @ H).

    mix is float32 [rows, rows] of small integers. signs is int32 [width / 32] with one bit a channel (1: negated), and
    flips the same as int16 [width], the sign bit of a 16-bit number. signed: whether there may be negated ones.
    """

    mix: Tensor
    signs: Tensor
    flips: Tensor
    columns: int
    norm: float
    signed: bool

    @property
    def width(self) -> int:
        return len(self.mix) * self.columns

    def of_signed(self) -> "Rotation":
        """For tokens that have been multiplied by the signs already."""
        signs, flips = torch.zeros_like(self.signs), torch.zeros_like(self.flips)
        settle(flips)
        return replace(self, signs=signs, flips=flips, signed=False)


def sylvester(n: int) -> Tensor:
    """The n x n Sylvester-Hadamard matrix, n a power of two, float32."""
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return matrix


def full_rotation(base: Tensor, width: int, signs: Tensor | None = None) -> Rotation:
    """x @ (base (x) H_2 (x) ... (x) H_2) / sqrt(width), with base any K x K matrix of +-1 and width = K 2^m.

    signs is [width] of +-1. Raises BenchError unless the width is K 2^m, a multiple of 128, with K <= 48.
    """
    power = width // len(base)
    # As much of the power of two as fits goes to the tensor cores; the rest is at least 32 and stays in registers.
    widest = max((d for d in (1, 2, 4, 8, 16, 32) if len(base) * d <= 48 and power % (32 * d) == 0), default=0)
    if width % 128 or power * len(base) != width or power & (power - 1) or not widest or power > 128 * widest:
        raise BenchError(
            f"a rotation of width {width} from a {len(base)} x {len(base)} matrix is not supported: "
            "the width must be K 2^m, a multiple of 128 up to 6144, with K at most 48"
        )
    mix = torch.kron(base.float().cpu(), sylvester(widest)).to(base.device)
    return _rotation(mix, power // widest, width**-0.5, signs)


def block_rotation(width: int, signs: Tensor | None = None, block: int = 128) -> Rotation:
    """x @ blockdiag(H_block, ...) / sqrt(block).

    Raises BenchError when the width is no multiple of 128 or has more than 48 blocks.
    """
    if width % 128 or width % block or width // block > 48 or block not in (32, 64, 128):
        raise BenchError(f"rotation of width {width} in blocks of {block} is not supported")
    device = None if signs is None else signs.device
    return _rotation(torch.eye(width // block, device=device), block, block**-0.5, signs)


def _rotation(mix: Tensor, columns: int, norm: float, signs: Tensor | None) -> Rotation:
    width = len(mix) * columns
    negative = torch.zeros(width, dtype=torch.bool) if signs is None else signs < 0
    negative = negative.to(mix.device)
    flips = torch.where(negative, -(2**15), 0).to(torch.int16)
    settle(flips)
    return Rotation(mix.float().contiguous(), pack_bits(negative), flips, columns, norm, signs is not None)


def pack_down(down: Tensor, rotation: Rotation, pre: str = "none") -> Tensor:
    """[16, k], to be applied to rotated tokens -> [k / 16, 32, 8] in the order of mma fragments.

    They are float16 for tokens that are modulated (`rotate_quantize`'s pre), as those are then, else bfloat16.

    A rotation is orthogonal, so the branch is worked out before it: low = down R^T x. The matrix down R^T, for signed
    tokens, is formed in float64 and rounded to 16 bits once. Lane (g, t) of half h of 32 channels holds the pairs
    (rank g, channel c), (g + 8, c), (g, c + 2), (g + 8, c + 2) from c = 8 t + 4 h on: eight channels that lie together
    in a token make up one thread's operands. Raises BenchError when the rank is not 16 or the width is not the
    rotation's.
    """
    return _fragments(before_rotation(down, rotation).to(torch.float16 if pre == "modulate" else torch.bfloat16))


def pack_next(down: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """`pack_down` for the product that makes the tokens, which sums low in integers: (bfloat16, scale [16] float64).

    Ranks are multiplied by powers of two, so sums of `scale` times low. What 64 or 128 channels add is rounded to an
    integer; a rank's sum is below 2^31 while |x|, weighted with its |down R^T|, stays below 512 on average. The step is
    2^-22 to 2^-21 of what tokens of size one could add up to, small beside the rounding of low to 16 bits that follows.
    Raises BenchError as `pack_down` does.
    """
    matrix = before_rotation(down, rotation)
    scale = torch.exp2((SUM / matrix.abs().sum(-1)).log2().floor())
    scale[scale.isinf()] = 1.0  # ranks of zeros
    return _fragments((matrix * scale[:, None]).to(torch.bfloat16)), scale


def before_rotation(down: Tensor, rotation: Rotation) -> Tensor:
    """down R^T [16, k] float64, to be applied to tokens that have their signs but are not rotated yet."""
    if tuple(down.shape) != (RANK, rotation.width):
        raise BenchError(f"the down-projection needs [{RANK}, {rotation.width}], not {list(down.shape)}")
    matrix = down.detach().double().reshape(RANK, -1, rotation.columns)
    matrix = rotation.mix.to(matrix) @ matrix @ sylvester(rotation.columns).to(matrix) * rotation.norm
    return matrix.reshape(RANK, -1)


def _fragments(matrix: Tensor) -> Tensor:
    pairs = matrix.contiguous().view(torch.int32)  # [16, k / 2]
    pairs = pairs.reshape(2, 8, -1, 4, 2, 2)  # rank half, g, 32 channels, t, h, pair
    packed = pairs.permute(2, 4, 1, 3, 5, 0).reshape(-1, 32, 4).contiguous().view(matrix.dtype)
    settle(packed)
    return packed
