"""The figure of an ablation, whatever it is about."""

import re
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes

from robuq_bench.report.drawing import MARKERS, PALETTE, STYLE, logarithmic, plt, svg
from robuq_bench.report.records import Ablation, AblationPlot

Points = dict[str, list[tuple]]  # series -> (x, y, half-width of y or None)


def ablation_plot(ablation: Ablation) -> str:
    """y against x, a colour for each value of `series`: lines where x is a number, else dots beside the names.

    Bars are 95 % intervals, where the plot names a column of half-widths.
    """
    plan, title = ablation.plot, f"{ablation.title} ({ablation.label})"
    settings = list(dict.fromkeys(row[plan.x] for row in ablation.rows))
    numeric, series = all(isinstance(x, int | float) for x in settings), _points(ablation)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        (_lines if numeric else _dots)(axes, plan, settings, series)
        values = [y for points in series.values() for _, y, _ in points]
        if plan.log and min(values, default=0) > 0:
            logarithmic(axes, "y" if numeric else "x")
        axes.set_title(title)
        name = re.sub("[^A-Za-z0-9]", "-", ablation.name)
        return svg(figure, f"ablation-{name}", title, axes.get_legend_handles_labels()[0])


def _points(ablation: Ablation) -> Points:
    """The points of each series; a row without a number (it diverged) keeps its place on the axis, and has none."""
    plan = ablation.plot
    series: Points = {str(row[plan.series]): [] for row in ablation.rows}
    for row in ablation.rows:
        if isinstance(row[plan.y], int | float):
            series[str(row[plan.series])].append((row[plan.x], row[plan.y], row[plan.error] if plan.error else None))
    return series


def _lines(axes: Axes, plan: AblationPlot, settings: Sequence[float], series: Points) -> None:
    for i, (name, points) in enumerate(series.items()):
        axes.errorbar([x for x, *_ in points], [y for _, y, _ in points], _bars(points), label=name, **_look(i))
    ticks = sorted(settings)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set(xlabel=plan.xlabel, ylabel=plan.ylabel)


def _dots(axes: Axes, plan: AblationPlot, settings: Sequence[str], series: Points) -> None:
    for i, (name, points) in enumerate(series.items()):
        places = [settings.index(x) for x, *_ in points]
        axes.errorbar([y for _, y, _ in points], places, xerr=_bars(points), linestyle="", label=name, **_look(i))
    axes.set_yticks(range(len(settings)), [textwrap.fill(str(x), 30) for x in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set(xlabel=plan.ylabel, ylabel=plan.xlabel)
    axes.figure.set_figheight(1.2 + 0.36 * len(settings))


def _bars(points: list[tuple]) -> list[float] | None:
    widths = [width for *_, width in points]
    return [width or 0 for width in widths] if any(widths) else None


def _look(i: int) -> dict[str, str | float]:
    marker = list(MARKERS.values())[i % len(MARKERS)]
    return {"marker": marker, "color": PALETTE[i % len(PALETTE)], "capsize": 3, "elinewidth": 1.2}
