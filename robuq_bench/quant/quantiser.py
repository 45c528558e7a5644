"""Fake quantisers: a format, a granularity, a scale rule and a gradient estimator put together."""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant.formats import SCALE_RULES, TINY, Grid, Rule, Scale, decode_, encode, grid

GROUP = 64
"""Channels that share a scale under granularity "group": SVDQuant's INT4 group size."""


class _Round(torch.autograd.Function):
    """Forward: the quantised value. Backward: the gradient of the estimator, zero where `mask` says so."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        ctx.mask = mask
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient if ctx.mask is None else gradient * ctx.mask), None, None


def trust_mask(x: Tensor, value: Tensor, scale: Scale) -> Tensor:
    """True where the quantisation error is at most half a step (trust estimator, arXiv 2502.05003)."""
    slack = 1e-6 * (scale.step + x.abs())  # float rounding at the very edge of a cell
    return (x - value).abs() <= scale.step / 2 + slack


def inside_mask(x: Tensor, scale: Scale, grid: Grid) -> Tensor:
    """True where `x` is not clipped: within half a cell of a level."""
    if grid.table is not None:  # half the outermost spacing beyond the outermost levels
        z = (x if scale.offset is None else x - scale.offset) / scale.cell.clamp_min(TINY)
        edge = grid.table[-1] + (grid.table[-1] - grid.table[-2]) / 2
        return z.abs() <= edge
    z = (x if scale.offset is None else x - scale.offset) / scale.cell.clamp_min(TINY) - grid.shift
    return (z >= grid.low - 0.5) & (z <= grid.high + 0.5)


@dataclass(frozen=True)
class Quantiser:
    """`spec` at `bits`. Called on a tensor [..., n] it returns the fake-quantised tensor of the same shape and dtype.

    One scale is shared by the whole tensor ("tensor"), by each vector along the last dimension ("channel" for
    weights [out, in], "token" for activations [..., channels]), or by 64 neighbours in it ("group"). No gradient
    flows through the scale: scales follow the values, as in the fused author-adjacent code (paper-facts 1.5).
    """

    spec: Spec
    bits: float

    @property
    def grid(self) -> Grid:
        return grid(self.spec.format, self.bits)

    def groups(self, x: Tensor) -> Tensor:
        """A view of `x` whose last dimension is what shares one scale."""
        if self.spec.granularity == "tensor":
            return x.reshape(1, -1)
        if self.spec.granularity == "group":
            return x.unflatten(-1, (-1, gcd(x.shape[-1], GROUP)))
        return x

    @torch.no_grad()
    def scale(self, x: Tensor) -> Scale:
        """Scale of each group of `x`; offset includes the mean when the recipe centres."""
        groups = self.groups(x)
        mean = groups.mean(-1, keepdim=True) if self.spec.centre else None
        rule = Rule(self.spec.format, self.bits, self.spec.step, self.spec.threshold, self.spec.stretch)
        found = SCALE_RULES[self.spec.scale](groups if mean is None else groups - mean, rule)
        if mean is None:
            return found
        return Scale(found.cell, found.step, mean if found.offset is None else mean + found.offset)

    def encode(self, x: Tensor, scale: Scale) -> Tensor:
        """Integer codes of `x`, in its shape: int8, or int16 for unsigned 8-bit ones."""
        dtype = torch.int8 if self.grid.high < 128 else torch.int16
        return encode(self.groups(x), scale, self.grid).to(dtype).view(x.shape)

    def decode(self, codes: Tensor, scale: Scale) -> Tensor:
        """Values of integer codes, in their shape and the dtype of the scale."""
        values = self.groups(codes).to(scale.step.dtype, copy=True)
        return decode_(values, scale, self.grid).view(codes.shape)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale, groups = self.scale(x), self.groups(x)
            value = decode_(encode(groups, scale, self.grid), scale, self.grid)
            mask = None
            if x.requires_grad and self.spec.estimator == "trust":
                mask = trust_mask(groups, value, scale).view(x.shape)
            elif x.requires_grad and self.spec.estimator == "clipped":
                mask = inside_mask(groups, scale, self.grid).view(x.shape)
        return _Round.apply(x, value.view(x.shape), mask)
