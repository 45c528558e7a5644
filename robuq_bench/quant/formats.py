"""Number formats and scale rules: how values become integer codes and back.

Every uniform format here is  value = step * (code + shift) + offset,  code an integer in [low, high]; the one
non-uniform format (Lloyd-Max) is  value = step * table[code] + offset.
A scale rule finds, for each group of values along the last dimension, `cell` (width of a rounding cell), `step`
(spacing of the reconstruction; equal to `cell` except where a ternary scale is refitted) and `offset`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robuq_bench.quant import gaussian

TINY = 1e-12
"""Least cell width, so that a group of equal values divides by no zero."""


@dataclass(frozen=True)
class Grid:
    """The integer codes of a format: low..high, with `shift` between a code and its level, or a `table` of levels."""

    low: int
    high: int
    shift: float = 0.0
    table: tuple[float, ...] | None = None

    @property
    def levels(self) -> int:
        return self.high - self.low + 1


def grid(format: str, bits: float) -> Grid:
    """Codes of `format` at `bits`: 3 levels for ternary, 2^bits for the others."""
    if format == "ternary":
        return Grid(-1, 1)
    if format == "lloyd_max":
        return Grid(0, 2 ** int(bits) - 1, table=gaussian.lloyd_max(bits))
    half = 2 ** (int(bits) - 1)
    if format == "asymmetric":
        return Grid(0, 2 * half - 1)
    return Grid(-half, half - 1, 0.5 if format == "midrise" else 0.0)


@dataclass(frozen=True)
class Scale:
    """Scale of each group: tensors broadcastable to the values."""

    cell: Tensor
    step: Tensor
    offset: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """What a scale rule may look at besides the values."""

    format: str
    bits: float
    table: str
    threshold: float = 0.5
    stretch: float = 1.0


def _gaussian(sigma: Tensor, rule: Rule) -> Scale:
    sigma = sigma * rule.stretch
    if rule.format == "lloyd_max":
        return Scale(sigma, sigma)
    cell = sigma * gaussian.step(rule.format, rule.bits, rule.table)
    return Scale(cell, cell)


def _mean_abs(x: Tensor, rule: Rule) -> Scale:
    """sigma from the mean absolute deviation (RobustQuantizer, author-adjacent code)."""
    return _gaussian(x.abs().mean(-1, keepdim=True) * gaussian.MEAN_ABS_TO_SIGMA, rule)


def _rms(x: Tensor, rule: Rule) -> Scale:
    """sigma from the root mean square (QuEST, arXiv 2502.05003)."""
    return _gaussian(x.square().mean(-1, keepdim=True).sqrt(), rule)


def _absmax(x: Tensor, rule: Rule) -> Scale:
    """Largest magnitude on the outermost positive level (mid-tread) or cell edge (mid-rise)."""
    cells = 2 ** (rule.bits - 1) - (rule.format == "midtread")
    cell = x.abs().amax(-1, keepdim=True) / cells
    return Scale(cell, cell)


def _absmean(x: Tensor, rule: Rule) -> Scale:
    """Ternary: mean|w| (BitNet b1.58). Integers: mean|x| / sqrt(2^(b-1) - 1), BitNet a4.8's sqrt(7) at 4 bits."""
    mean = x.abs().mean(-1, keepdim=True)
    cell = mean if rule.format == "ternary" else mean / (2 ** (rule.bits - 1) - 1) ** 0.5
    return Scale(cell, cell)


def _minmax(x: Tensor, rule: Rule) -> Scale:
    """Asymmetric: the smallest value is code 0, the largest code 2^b - 1."""
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    cell = (high - low) / (2**rule.bits - 1)
    return Scale(cell, cell, low)


def _conditional_mean(x: Tensor, rule: Rule) -> Scale:
    """Ternary: zero below threshold * mean|w|, scale E[|w| : |w| above it], the least-squares scale of that mask.

    Threshold 0.5 is the author-adjacent code's (paper-facts 1.2).
    """
    size = x.abs()
    cell = size.mean(-1, keepdim=True) * (2 * rule.threshold)
    kept = size >= cell / 2
    step = (size * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1)
    return Scale(cell, step)


def _least_squares(x: Tensor, rule: Rule) -> Scale:
    """Ternary: the threshold and scale of least squared error among all, found by sorting each group.

    Keeping the k largest magnitudes at their mean removes (sum of them)^2 / k from the error, so the best k
    maximises that; the cell edge lies halfway between the k-th magnitude and the next.
    """
    size = x.abs().sort(-1, descending=True).values
    count = torch.arange(1, size.shape[-1] + 1, device=x.device, dtype=x.dtype)
    sums = size.cumsum(-1)
    best = (sums.square() / count).argmax(-1, keepdim=True)
    after = torch.nn.functional.pad(size, (0, 1)).gather(-1, best + 1)
    return Scale(size.gather(-1, best) + after, sums.gather(-1, best) / (best + 1))


SCALE_RULES: dict[str, Callable[[Tensor, Rule], Scale]] = {
    "mean_abs": _mean_abs,
    "rms": _rms,
    "absmax": _absmax,
    "absmean": _absmean,
    "minmax": _minmax,
    "conditional_mean": _conditional_mean,
    "least_squares": _least_squares,
}


def encode(x: Tensor, scale: Scale, grid: Grid) -> Tensor:
    """Integer codes (in the dtype of `x`) of the nearest levels, clamped to the grid."""
    z = x if scale.offset is None else x - scale.offset
    z = z / scale.cell.clamp_min(TINY)
    if grid.table is not None:
        levels = torch.tensor(grid.table, device=z.device)
        return torch.bucketize(z, (levels[1:] + levels[:-1]) / 2).to(z.dtype)
    codes = z.floor_() if grid.shift else z.round_()
    return codes.clamp_(grid.low, grid.high)


def decode_(codes: Tensor, scale: Scale, grid: Grid) -> Tensor:
    """Values of integer codes held in a float tensor, computed in its place (a third of the memory traffic)."""
    if grid.table is not None:
        values = torch.tensor(grid.table, device=codes.device, dtype=codes.dtype)[codes.long()] * scale.step
        return values if scale.offset is None else values + scale.offset
    values = (codes.add_(grid.shift) if grid.shift else codes).mul_(scale.step)
    return values if scale.offset is None else values.add_(scale.offset)
