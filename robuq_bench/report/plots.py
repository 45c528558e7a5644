"""The figures of a table: training losses, quality against bits, quality against size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robuq_bench.report.drawing import INK, MARKERS, PALETTE, STYLE, log_if_wide, plt, svg
from robuq_bench.report.rows import Row

DASHES = ("-", "--", ":", "-.")
SMOOTHING = 25  # a curve is smoothed over this share (1/25) of its steps


@dataclass(frozen=True)
class Curve:
    """Training losses of a row, the mean over seeds: one a step, or at even distances over `steps`."""

    row: Row
    losses: Sequence[float]
    steps: int | None = None

    @property
    def places(self) -> list[float]:
        """The step of each loss."""
        count = len(self.losses)
        return [(i + 1) * (self.steps or count) / count for i in range(count)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window` - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """Method -> colour, in order of appearance; full precision is drawn in ink."""
    rows = list(rows)
    methods = dict.fromkeys(row.method for row in rows if row.quantised)
    palette = {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}
    return palette | {row.method: INK for row in rows if not row.quantised}


def loss_curves(name: str, title: str, curves: Sequence[Curve]) -> str:
    """Smoothed training loss against step. Colour: method; dashes: bit setting. Diverged rows are named."""
    paint = colours(curve.row for curve in curves)
    variants = list(dict.fromkeys(curve.row.variant.name for curve in curves))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for curve in curves:
            losses = running_mean(curve.losses, max(1, len(curve.losses) // SMOOTHING))
            dash = DASHES[variants.index(curve.row.variant.name) % len(DASHES)]
            label = curve.row.name + (" (diverged)" if curve.row.status == "diverged" else "")
            axes.plot(curve.places, losses, dash, color=paint[curve.row.method], label=label)
        log_if_wide(axes, "y", [loss for curve in curves for loss in curve.losses])
        axes.set(xlabel="step", ylabel="training loss (running mean)", title=title)
        return svg(figure, name, title, axes.get_legend_handles_labels()[0])


def quality_and_bits(rows: Sequence[Row], floor: float, metric: str) -> str:
    """FD against activation bits. Colour: method; marker: weight bits; a diverged row is a cross at the top."""
    title = f"{metric} by activation bits ({_how(rows)})"
    quantised = [row for row in rows if row.quantised]
    widths = sorted({row.variant.activation_bits for row in quantised})
    paint, place = colours(rows), _places(quantised, widths)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for line in _lines(rows):
            _draw(axes, line, [place[row.key] for row in line], paint)
        for row in rows:
            if row.quantised and row.status == "diverged":
                axes.plot(place[row.key], 0.97, "x", color=paint[row.method], transform=axes.get_xaxis_transform())
            elif row.status == "ok" and not row.quantised:
                level(axes, row.method, row.figures["FD"].mean, "--")
        level(axes, "real images (floor)", floor, ":")
        axes.set_xticks(range(len(widths)), [f"A{width}" for width in widths])
        axes.set_xlim(-0.6, len(widths) - 0.4)
        log_if_wide(axes, "y", [floor, *(row.figures["FD"].mean for row in rows if row.figures)])
        axes.set(xlabel="activation bits", ylabel=f"{metric} (lower is better)", title=title)
        return svg(figure, "bits", title, _keys(quantised, paint))


def quality_and_size(rows: Sequence[Row], floor: float, metric: str) -> str:
    """FD against the size of the packed file. Colour: method; marker: weight bits."""
    title = f"{metric} ({_how(rows)}) by size (packed)"
    good, paint = [row for row in rows if row.figures], colours(rows)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for row in good:
            _draw(axes, [row], [row.figures["size"].mean / 1e3], paint)
            axes.annotate(
                f"A{row.variant.activation_bits}",
                (row.figures["size"].mean / 1e3, row.figures["FD"].mean),
                xytext=(6, 3),
                textcoords="offset points",
                fontsize=7,
            )
        level(axes, "real images (floor)", floor, ":")
        axes.margins(x=0.15)
        log_if_wide(axes, "x", [row.figures["size"].mean / 1e3 for row in good])
        log_if_wide(axes, "y", [floor, *(row.figures["FD"].mean for row in good)])
        axes.set(xlabel="packed file, kB", ylabel=f"{metric} (lower is better)", title=title)
        return svg(figure, "size", title, _keys(good, paint))


def _how(rows: Sequence[Row]) -> str:
    """Label of the scores: all rows of a table share it."""
    return next((row.figures["FD"].label for row in rows if row.figures), "simulated")


def _lines(rows: Sequence[Row]) -> list[list[Row]]:
    """Quantised rows that came through, of one method and weight width each, by activation bits."""
    groups: dict[tuple, list[Row]] = {}
    for row in sorted((row for row in rows if row.competes), key=lambda row: row.variant.activation_bits):
        groups.setdefault((row.method, row.variant.weight_bits), []).append(row)
    return list(groups.values())


def _draw(axes: Axes, rows: Sequence[Row], xs: Sequence[float], paint: dict[str, str]) -> None:
    """One line of FD with intervals where there are any."""
    figures = [row.figures["FD"] for row in rows]
    axes.errorbar(
        xs,
        [figure.mean for figure in figures],
        yerr=[figure.half_width or 0 for figure in figures] if any(f.half_width for f in figures) else None,
        marker=MARKERS[rows[0].variant.weight_bits],
        color=paint[rows[0].method],
        capsize=3,
        linewidth=1.2,
    )


def level(axes: Axes, name: str, height: float, dash: str) -> None:
    """A horizontal line with its name above its right end."""
    axes.axhline(height, linestyle=dash, color=INK, linewidth=0.9)
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 7}
    axes.annotate(name, (1, height), **place).set_in_layout(False)


def _places(rows: Sequence[Row], widths: Sequence[int]) -> dict[str, float]:
    """Row key -> place on the axis of activation bits, side by side where there are several at one width."""
    places = {}
    for i, width in enumerate(widths):
        group = [row.key for row in rows if row.variant.activation_bits == width]
        places |= {key: i + 0.1 * (k - (len(group) - 1) / 2) for k, key in enumerate(group)}
    return places


def _keys(rows: Sequence[Row], paint: dict[str, str]) -> list[Line2D]:
    """Legend of `rows`: a colour for each method, a marker for each weight width, a cross when a row diverged."""
    methods = dict.fromkeys(row.method for row in rows)
    keys = [Line2D([], [], color=paint[method], linewidth=4, label=method) for method in methods]
    marks = {f"W{width:g}": MARKERS[width] for width in sorted({row.variant.weight_bits for row in rows})}
    if any(row.status == "diverged" for row in rows):
        marks["diverged"] = "x"
    return keys + [Line2D([], [], color=INK, linestyle="", marker=mark, label=name) for name, mark in marks.items()]
