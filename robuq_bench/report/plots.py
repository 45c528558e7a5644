"""Figures as inline SVG text: byte-stable, legible for the colour-blind, in the page's own ink (light or dark)."""

import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from robuq_bench.report.records import Ablation
from robuq_bench.report.rows import Row

STYLE = Path(__file__).with_name("style.mplstyle")
INK = "#0a0b0c"  # becomes currentColor in the SVG
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")  # Okabe & Ito
MARKERS = {1.58: "o", 2: "^", 3: "s", 4: "D", 8: "v", 32: "*"}  # by weight bits
DASHES = ("-", "--", ":", "-.")
SMOOTHING = 25  # a curve is smoothed over this share (1/25) of its steps
WIDE = 4  # ratio of largest to smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """Training losses of one run, one a step; `row` tells method and bits."""

    row: Row
    losses: Sequence[float]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window` - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))
    ]


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
            axes.plot(range(1, len(losses) + 1), losses, dash, color=paint[curve.row.method], label=label)
        _log_if_wide(axes, "y", [loss for curve in curves for loss in curve.losses])
        axes.set(xlabel="step", ylabel="training loss (running mean)", title=title)
        return _svg(figure, name, title, axes.get_legend_handles_labels()[0])


def quality_and_bits(rows: Sequence[Row], floor: float, metric: str) -> str:
    """FD against activation bits. Colour: method; marker: weight bits; a diverged row is a cross at the top."""
    title = f"{metric} by activation bits (simulated)"
    widths = sorted({row.variant.activation_bits for row in rows if row.quantised})
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for line in _lines(rows):
            _draw(axes, line, [widths.index(row.variant.activation_bits) for row in line], colours(rows))
        for row in rows:
            if row.quantised and row.status == "diverged":
                place = widths.index(row.variant.activation_bits)
                axes.plot(place, 0.97, "x", color=colours(rows)[row.method], transform=axes.get_xaxis_transform())
        levels = {row.method: row.figures["FD"].mean for row in rows if not row.quantised and row.figures}
        _reference_lines(axes, levels | {"real images (floor)": floor})
        axes.set_xticks(range(len(widths)), [f"A{width}" for width in widths])
        axes.set_xlim(-0.6, len(widths) - 0.4)
        _log_if_wide(axes, "y", [floor, *(row.figures["FD"].mean for row in rows if row.figures)])
        axes.set(xlabel="activation bits", ylabel=f"{metric} (lower is better)", title=title)
        return _svg(figure, "bits", title, _keys(rows))


def quality_and_size(rows: Sequence[Row], floor: float, metric: str) -> str:
    """FD against the size of the packed file. Colour: method; marker: weight bits."""
    title = f"{metric} (simulated) by size (packed)"
    good = [row for row in rows if row.figures]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for row in good:
            _draw(axes, [row], [row.figures["size"].mean / 1e3], colours(rows))
            axes.annotate(
                f"A{row.variant.activation_bits}",
                (row.figures["size"].mean / 1e3, row.figures["FD"].mean),
                xytext=(6, 3),
                textcoords="offset points",
                fontsize=7,
            )
        _reference_lines(axes, {"real images (floor)": floor})
        axes.margins(x=0.15)
        _log_if_wide(axes, "x", [row.figures["size"].mean / 1e3 for row in good])
        _log_if_wide(axes, "y", [floor, *(row.figures["FD"].mean for row in good)])
        axes.set(xlabel="packed file, kB", ylabel=f"{metric} (lower is better)", title=title)
        return _svg(figure, "size", title, _keys(good))


def ablation_plot(ablation: Ablation) -> str:
    """y against x, one line for each value of `series`; points without both numbers are left out."""
    plan = ablation.plot
    points = [row for row in ablation.rows if isinstance(row.get(plan.y), int | float)]
    names = list(dict.fromkeys(str(row[plan.series]) for row in points))
    categories = list(dict.fromkeys(row[plan.x] for row in points))
    numeric = all(isinstance(x, int | float) for x in categories)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for i, name in enumerate(names):
            own = [row for row in points if str(row[plan.series]) == name]
            xs = [row[plan.x] if numeric else categories.index(row[plan.x]) for row in own]
            marker = list(MARKERS.values())[i % len(MARKERS)]
            colour = PALETTE[i % len(PALETTE)]
            axes.plot(xs, [row[plan.y] for row in own], marker=marker, color=colour, label=name)
        ticks = sorted(categories) if numeric else range(len(categories))
        axes.set_xticks(ticks, [f"{x:g}" if numeric else x for x in (ticks if numeric else categories)])
        if plan.log:
            _logarithmic(axes, "y")
        title = f"{ablation.title} ({ablation.label})"
        axes.set(xlabel=plan.xlabel, ylabel=plan.ylabel, title=title)
        return _svg(figure, f"ablation-{ablation.name}", title, axes.get_legend_handles_labels()[0])


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


def _reference_lines(axes: Axes, levels: dict[str, float]) -> None:
    for (name, level), dash in zip(levels.items(), ("--", ":"), strict=False):
        axes.axhline(level, linestyle=dash, color=INK, linewidth=0.9)
        text = axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
        text.set_in_layout(False)


def _keys(rows: Sequence[Row]) -> list[Line2D]:
    """Legend: a colour for each method, a marker for each weight width, a cross when a row diverged."""
    methods = [Line2D([], [], color=colour, linewidth=4, label=name) for name, colour in colours(rows).items()]
    widths = sorted({row.variant.weight_bits for row in rows})
    markers = [
        Line2D([], [], color=INK, linestyle="", marker=MARKERS[width], label=f"W{width:g}") for width in widths
    ]
    lost = [Line2D([], [], color=INK, linestyle="", marker="x", label="diverged")]
    return methods + markers + (lost if any(row.status == "diverged" for row in rows) else [])


def _log_if_wide(axes: Axes, which: str, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) >= WIDE:
        _logarithmic(axes, which)


def _logarithmic(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _svg(figure: Figure, name: str, title: str, handles: Sequence) -> str:
    """The figure with its legend below, as an <svg> element whose ids start with `name`."""
    columns = 2
    figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
