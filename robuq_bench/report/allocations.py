"""What the page says about bits that were chosen layer by layer (AMPN): values, from the files of a row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from robuq_bench.allocate.allocation import BLOCK, PAPER_AVERAGES, Profile
from robuq_bench.report.records import Bits
from robuq_bench.report.rows import Row

TYPES = tuple(BLOCK)
PAPER_MODEL = "paper, DiT-XL/2"
COSTS = {
    "average_bits": "the plain average of bits",
    "macs": "bits weighted by multiply-accumulates",
    "bitops": "bit operations",
    "latency": "measured time",
}
SHOWN = 300  # points of a front that are drawn


@dataclass(frozen=True)
class Allocated:
    """A row whose layers got their bits by allocation. bits: one a seed; profile: of the first seed."""

    row: Row
    bits: tuple[Bits, ...]
    profile: Profile

    @property
    def uniform(self) -> int:
        """The width that the budget pays for in every layer."""
        return self.row.variant.activation_bits

    @property
    def measure(self) -> str:
        """What was minimised, in words."""
        return {"loss": "rise of the loss", "mse": "summed relative output error"}[self.bits[0].sensitivity]


def widths(allocated: Allocated) -> dict[str, tuple[int, ...]]:
    """Layer type -> bits block by block, of the first seed; adaLN, which is fixed, is left out."""
    bits = allocated.bits[0].bits
    blocks = 1 + max(int(layer.split(".")[1]) for layer in bits)
    return {kind: tuple(bits[f"blocks.{block}.{kind}"] for block in range(blocks)) for kind in TYPES}


def sentences(allocated: Allocated) -> Iterable[str]:
    """Asked and achieved budget, and what the choice is predicted to save."""
    bits, profile = allocated.bits[0], allocated.profile
    share = bits.achieved / bits.budget
    yield (
        f"Budget: {COSTS[bits.cost]}, at most what {allocated.uniform} bits in every layer cost: {bits.budget:,} "
        f"{bits.unit}. Achieved: {bits.achieved:,}, {share:.1%} of it."
    )
    yield (
        f"Profile: {profile.images} images after {profile.steps} training steps, all other layers at "
        f"{max(profile.candidates)} bits, where the loss is {profile.base_loss:.4g}. "
        f"Predicted rise of the loss: {_rises(bits, allocated.uniform)}."
    )


def _rises(bits: Bits, uniform: int) -> str:
    chosen, even = bits.predicted_loss_increase, bits.predicted_loss_increase_uniform
    if even is None:
        return f"{chosen:.4g} ({uniform} bits in all layers was no candidate)"
    less = f", {1 - chosen / even:.0%} less" if 0 <= chosen < even else ""
    return f"{chosen:.4g}, against {even:.4g} with {uniform} bits in all layers{less}"


def averages(allocated: Allocated) -> list[tuple[str, list[str]]]:
    """(whose, average bits of `TYPES` and weighted by MACs as text) for each seed and the paper."""
    lines = [
        (f"seed {run.seed}", [*(f"{bits.averages[kind]:.2f}" for kind in TYPES), f"{bits.weighted_average:.2f}"])
        for run, bits in zip(allocated.row.runs, allocated.bits, strict=True)
    ]
    if paper := PAPER_AVERAGES.get(allocated.row.variant.name):
        weighted = np.average([paper[kind] for kind in TYPES], weights=[n * k for n, k in BLOCK.values()])
        lines.append((PAPER_MODEL, [*(f"{paper[kind]:.2f}" for kind in TYPES), f"{weighted:.2f}"]))
    return lines


def profiled(allocated: Allocated, measure: str) -> np.ndarray:
    """The profile, "loss" or "mse", as [layer type, width, block]."""
    profile = allocated.profile
    values = dict(zip(profile.layers, getattr(profile, measure), strict=True))
    blocks = range(len(profile.layers) // len(TYPES))
    return np.array([[values[f"blocks.{block}.{kind}"] for block in blocks] for kind in TYPES]).swapaxes(1, 2)


def thinned(x: Sequence[float], y: Sequence[float], keep: Iterable[int], count: int = SHOWN) -> list[int]:
    """Indices of about `count` points of a curve, evenly spread along it, the ends and `keep` among them.

    Lengths are measured with both axes scaled to 1: between two neighbours that are kept the curve is shorter than
    2 / `count` of the figure, unless it is one step.
    """
    if len(x) <= count:
        return list(range(len(x)))
    steps = [np.diff(values) / (np.ptp(values) or 1) for values in (x, y)]
    along = np.concatenate([[0], np.cumsum(np.hypot(*steps))])
    places = np.searchsorted(along, np.linspace(0, along[-1], count))
    return sorted({*places.tolist(), *keep})
