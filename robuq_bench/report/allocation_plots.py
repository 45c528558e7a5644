"""Figures of an allocation: the front of loss against budget, and the sensitivity of every layer as heat maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import AsinhNorm, LogNorm, Normalize

from robuq_bench.report.allocations import TYPES, Allocated, profiled, thinned
from robuq_bench.report.drawing import INK, PALETTE, STYLE, plt, svg

AXES = {
    "average_bits": "average bits",
    "macs": "average bits, weighted by MACs",
    "bitops": "average bits, weighted by bit operations",
    "latency": "time of all products, as a share of the budget",
}
GAP = 0.25  # between layer types, in cells
TICKS = 14  # most blocks that are named
LINEAR = 0.02  # share of the largest loss rise below which the colour scale is linear


def pareto(allocated: Allocated, name: str) -> str:
    """The least sum of sensitivities at every budget; chosen and uniform points marked."""
    bits = allocated.bits[0]
    unit = bits.budget if bits.cost == "latency" else bits.budget / allocated.uniform
    cost, loss = (np.array([getattr(point, key) for point in bits.pareto]) for key in ("cost", "loss"))
    chosen = int(np.searchsorted(cost, bits.achieved))
    shown = thinned(cost, loss, [chosen])
    title = f"{allocated.row.name}: what every budget costs"
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(cost[shown] / unit, loss[shown], color=PALETTE[0], drawstyle="steps-post", label="least possible")
        axes.axvline(bits.budget / unit, linestyle=":", color=INK, linewidth=0.9)
        axes.plot(bits.achieved / unit, bits.minimised, "o", color=PALETTE[1], label="chosen")
        if bits.minimised_uniform is not None:
            label = f"{allocated.uniform} bits everywhere"
            axes.plot(bits.budget / unit, bits.minimised_uniform, "s", color=PALETTE[2], label=label)
        axes.set(xlabel=AXES[bits.cost], ylabel=f"predicted {allocated.measure}", title=title)
        return svg(figure, f"{name}-pareto", title, axes.get_legend_handles_labels()[0])


def sensitivity(allocated: Allocated, measure: str, name: str) -> str:
    """Heat map of the profile: blocks across, each layer type at each width down. measure: "loss" or "mse"."""
    words = {"loss": "rise of the loss", "mse": "relative output error"}[measure]
    title = f"{allocated.row.name}: {words}, layer by layer"
    grid = profiled(allocated, measure)
    norm, ticks = _scale(grid, measure)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(5.0, 0.9 + 0.17 * grid.shape[0] * grid.shape[1]))
        mesh = _draw(axes, grid, allocated.profile.candidates, norm, "PuOr_r" if measure == "loss" else "viridis")
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, ticks=ticks, format="%.2g")
        bar.outline.set_visible(False)
        bar.minorticks_off()
        axes.set_title(title)
        return svg(figure, f"{name}-{measure}", title, [])


def _scale(grid: np.ndarray, measure: str) -> tuple[Normalize, list[float]]:
    """Colours and their ticks. Rises of the loss have both signs: symmetric about 0; errors differ by orders."""
    if measure == "loss":
        largest = np.abs(grid).max() or 1.0
        return AsinhNorm(LINEAR * largest, vmin=-largest, vmax=largest), [*largest * np.array([-1, -0.1, 0, 0.1, 1])]
    low, high = max(grid.min(), 1e-12), max(grid.max(), 1e-12 * (1 + 1e-6))
    return LogNorm(low, high), [low, (low * high) ** 0.5, high]


def _draw(axes: Axes, grid: np.ndarray, widths: Sequence[int], norm: Normalize, colours: str) -> QuadMesh:
    """The cells, with a gap between layer types."""
    types, group, blocks = grid.shape
    cells = np.concatenate([grid, np.full((types, 1, blocks), np.nan)], axis=1).reshape(-1, blocks)[:-1]
    heights = np.tile([1.0] * group + [GAP], types)[:-1]
    edges = np.concatenate([[0], np.cumsum(heights)])
    mesh = axes.pcolormesh(np.arange(blocks + 1), edges, cells, norm=norm, cmap=colours)
    middle = (edges[:-1] + edges[1:])[heights == 1] / 2
    axes.set_yticks(middle, [f"{kind}, {bits}" for kind in TYPES for bits in widths], fontsize=7)
    step = -(-blocks // TICKS)
    axes.set_xticks(np.arange(0, blocks, step) + 0.5, [str(block) for block in range(0, blocks, step)])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="block", ylabel="layer type, bits")
    return mesh
