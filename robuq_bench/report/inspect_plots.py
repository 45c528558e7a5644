"""The figures of an inspection: Q-Q plots, kurtosis, error by bits, and what a row's weights and branch hold."""

from collections.abc import Callable, Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm

from robuq_bench.measure.inspect_records import BITS, PROBABILITIES, Activations, Layer, Row, RowLayer, View
from robuq_bench.models.dit import LINEARS, layer_type
from robuq_bench.report.drawing import INK, PALETTE, STYLE, log_if_wide, plt, svg

BLUE, RED, GREEN, PINK, YELLOW = PALETTE[:5]
LOOKS = {
    "none": {"label": "as it comes", "color": RED, "marker": "o", "markerfacecolor": "none"},
    "full": {"label": "rotated", "color": BLUE, "marker": "o"},
    "block-128": {"label": "rotated in blocks of 128", "color": GREEN, "marker": "d", "markersize": 4.5},
    "unsigned": {"label": "rotated without signs", "color": YELLOW, "marker": "x", "markersize": 5},
}
"""Rotation -> how it is drawn, here and in the page's key."""
SHOWN = ("none", "full")
FAR = 20  # the axis of a statistic is logarithmic beyond 1 when a value exceeds this


def by_type(layers: Sequence[Layer | RowLayer]) -> list:
    """Layers of one type side by side, blocks in order."""
    types = list(LINEARS)
    return sorted(layers, key=lambda layer: types.index(layer_type(layer.name)))  # stable: blocks keep their order


def short(name: str) -> str:
    """ "fc2 3" of "blocks.3.fc2"."""
    _, block, kind = name.split(".")
    return f"{kind} {block}"


def quantiles(activations: Activations) -> Iterator[str]:
    """A Q-Q plot for each layer type: tokens as they come and rotated, a line a block, against N(0, 1)."""
    normal = norm.ppf(PROBABILITIES)
    ends = [layer.views[view].quantiles[end] for layer in activations.layers for view in SHOWN for end in (0, -1)]
    limits = (1.05 * min(ends), 1.05 * max(ends))
    for kind in LINEARS:
        layers = [layer for layer in activations.layers if layer_type(layer.name) == kind]
        with plt.style.context(STYLE):
            figure, axes = plt.subplots(figsize=(2.3, 2.4))
            axes.axline((0, 0), slope=1, color=INK, linewidth=0.7, linestyle=":")
            for view in SHOWN:
                for layer in layers:
                    axes.plot(normal, layer.views[view].quantiles, color=LOOKS[view]["color"], linewidth=1, alpha=0.8)
            axes.set(xlabel="normal quantile", ylabel="token quantile", title=kind, ylim=limits)
            yield svg(figure, f"qq-{kind}", f"Q-Q plot of the inputs of {kind}", [])


def dumbbells(name: str, title: str, activations: Activations, normal: float, pick: Callable[[View], float]) -> str:
    """One statistic of each layer under each rotation; a line joins before and after. normal: of a normal token."""
    layers = by_type(activations.layers)
    values = {view: [pick(layer.views[view]) for layer in layers] for view in LOOKS}
    with plt.style.context(STYLE):
        figure, axes = _rows(layers)
        axes.axvline(normal, color=INK, linewidth=0.9, linestyle=":")
        for place, (before, after) in enumerate(zip(values["none"], values["full"], strict=True)):
            axes.plot([before, after], [place, place], color=INK, linewidth=0.8, alpha=0.4)
        for view in reversed(LOOKS):  # the rotation that the claim is about lies on top of its variants
            axes.plot(values[view], range(len(layers)), linestyle="", **{"markersize": 5.5} | LOOKS[view])
        if max(abs(value) for row in values.values() for value in row) > FAR:
            axes.set_xscale("symlog", linthresh=1)
        axes.set(xlabel=title, title=f"{title} (simulated)")
        keys = [Line2D([], [], linestyle="", **LOOKS[view]) for view in LOOKS]
        return svg(figure, name, title, keys)


def errors(activations: Activations) -> Iterator[str]:
    """Error of each quantiser over the floor, by bits: every layer as it comes and rotated, and normal tokens."""
    overall = [layer.views[view].overall for layer in activations.layers for view in SHOWN]
    floors = activations.floors.uniform
    ratios = [e / f for one in overall for e, f in zip((*one.gaussian, *one.minmax), floors * 2, strict=True)]
    for name, title in (("gaussian", "RobuQ's fixed grid"), ("minmax", "Min-max")):
        title = f"{title}: error over the floor (simulated)"
        with plt.style.context(STYLE):
            figure, axes = plt.subplots()
            _errors(axes, activations, name)
            axes.set_ylim(0.9 * min(ratios), 1.1 * max(ratios))
            log_if_wide(axes, "y", ratios)
            axes.set(xlabel="activation bits", ylabel="relative MSE / floor", title=title)
            yield svg(figure, f"error-{name}", title, _error_keys())


def _errors(axes: Axes, activations: Activations, name: str) -> None:
    floors = activations.floors
    axes.axhline(1, color=INK, linewidth=0.9, linestyle=":")
    for place, floor in enumerate(floors.uniform):
        for offset, view in ((-0.16, "none"), (0.16, "full")):
            values = [getattr(layer.views[view].overall, name)[place] / floor for layer in activations.layers]
            spread = [place + offset + 0.18 * (i / max(1, len(values) - 1) - 0.5) for i in range(len(values))]
            look = LOOKS[view] | {"label": None, "markersize": 3.5}
            axes.plot(spread, values, linestyle="", alpha=0.75, **look)
        for control in activations.controls.values():
            level = getattr(control.overall, name)[place] / floor
            axes.plot([place - 0.33, place + 0.33], [level, level], color=INK, linewidth=1.2)
        best = floors.lloyd_max[place] / floor
        axes.plot([place - 0.33, place + 0.33], [best, best], color=PINK, linewidth=1.2, linestyle="--")
    axes.set_xticks(range(len(BITS)), [str(bits) for bits in BITS])


def _error_keys() -> list[Line2D]:
    return [
        *(Line2D([], [], linestyle="", **LOOKS[view]) for view in SHOWN),
        Line2D([], [], color=INK, label="exactly normal tokens"),
        Line2D([], [], color=PINK, linestyle="--", label="Lloyd-Max on N(0, 1)"),
    ]


def weights(row: Row) -> str:
    """Shares of weights below, at and above zero."""
    title = "Weights below, at and above zero (packed)"
    layers = by_type(row.layers)
    with plt.style.context(STYLE):
        figure, axes = _rows(layers)
        left = [0.0] * len(layers)
        for name, colour, label in (("minus", RED, "below"), ("zero", PALETTE[6], "zero"), ("plus", BLUE, "above")):
            shares = [getattr(layer, name) for layer in layers]
            axes.barh(range(len(layers)), shares, left=left, color=colour, height=0.72, label=label)
            left = [start + share for start, share in zip(left, shares, strict=True)]
        axes.axvline((1 - row.control.zero) / 2, color=INK, linewidth=0.9, linestyle=":")
        axes.axvline((1 + row.control.zero) / 2, color=INK, linewidth=0.9, linestyle=":", label="normal weights")
        axes.set(xlim=(0, 1), xlabel="share of the layer's weights", title=title)
        return svg(figure, "weights", title, _handles(axes))


def branch(row: Row) -> str:
    """What the low-rank branch carries of each layer's output and weight."""
    title = "What the low-rank branch carries (simulated)"
    layers = by_type([layer for layer in row.layers if layer.branch])
    with plt.style.context(STYLE):
        figure, axes = _rows(layers)
        looks = (
            ("output_share", "squared output", BLUE, "o", BLUE),
            ("main_share", "squared output of the quantised product", RED, "o", "none"),
            ("weight_share", "squared weight", GREEN, "d", GREEN),
        )
        for name, label, colour, marker, face in looks:
            values = [getattr(layer.branch, name) for layer in layers]
            look = {"color": colour, "marker": marker, "markerfacecolor": face, "markersize": 5.5}
            axes.plot(values, range(len(layers)), linestyle="", label=label, **look)
        axes.set(xlabel="share", title=title)
        axes.set_xlim(left=0)
        return svg(figure, "branch", title, _handles(axes))


def spectra(row: Row) -> str:
    """Singular values of up @ down, over the largest; a line a layer, a colour a type."""
    title = "Singular values of the branch (packed)"
    layers = by_type([layer for layer in row.layers if layer.branch])
    paint = dict(zip(LINEARS, PALETTE, strict=False))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for layer in layers:
            values, kind = layer.branch.singular_values, layer_type(layer.name)
            axes.plot(
                range(1, len(values) + 1), [v / (values[0] or 1) for v in values], color=paint[kind], linewidth=1.2
            )
        axes.set(xlabel="rank", ylabel="singular value / largest", title=title, ylim=(0, 1.03))
        keys = [Line2D([], [], color=colour, linewidth=3, label=kind) for kind, colour in paint.items()]
        return svg(figure, "spectra", title, keys)


def _rows(layers: Sequence[Layer | RowLayer]) -> tuple[Figure, Axes]:
    """Axes with a line for each layer, the first on top."""
    figure, axes = plt.subplots(figsize=(5.0, 1.1 + 0.17 * len(layers)))
    axes.set_yticks(range(len(layers)), [short(layer.name) for layer in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure, axes


def _handles(axes: Axes) -> list:
    return axes.get_legend_handles_labels()[0]
