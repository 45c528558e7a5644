"""The page of an inspection as text: everything inline, nothing fetched from anywhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from robuq_bench.measure.inspect_records import BITS, Activations, Inspection, Layer, Summary, View
from robuq_bench.measure.inspect_verdict import JUDGED, NEAR, ratio
from robuq_bench.report import facts
from robuq_bench.report import inspect_plots as plots
from robuq_bench.report.page import template


@dataclass(frozen=True)
class Map:
    """Layers against times. cells: layer -> (text, tint 0...5) at each time."""

    title: str
    cells: dict[str, list[tuple[str, float]]]


def render(inspection: Inspection) -> str:
    """The page; the same inspection gives the same bytes."""
    activations, row = inspection.activations, inspection.row
    branched = any(layer.branch for layer in row.layers)
    row_plots = (plots.branch, plots.spectra, plots.weights) if branched else (plots.weights,)
    return template("inspect.html.j2").render(
        title="Are rotated activations normal?",
        inspection=inspection,
        looks=plots.LOOKS,
        quantiles=[Markup(figure) for figure in plots.quantiles(activations)],
        errors=[Markup(figure) for figure in plots.errors(activations)],
        dumbbells=[Markup(figure) for figure in dumbbells(activations)],
        maps=list(maps(activations)),
        layers=[_line(layer, activations) for layer in plots.by_type(activations.layers)],
        controls=[_control(width, view, activations) for width, view in activations.controls.items()],
        row_layers=[(plots.short(layer.name), layer) for layer in plots.by_type(row.layers)],
        row_figures=[Markup(draw(row)) for draw in row_plots],
        branched=branched,
        environment=facts.environment([inspection.provenance]),
        judged=JUDGED,
        near=NEAR,
    )


def dumbbells(activations: Activations) -> Iterator[str]:
    """Each layer before and after rotation: its shape, and what that costs."""
    place = BITS.index(JUDGED)

    def kurtosis(view: View) -> float:
        return view.overall.kurtosis

    def error(view: View) -> float:
        return view.overall.gaussian[place] / activations.floors.uniform[place]

    yield plots.dumbbells("kurtosis", "Excess kurtosis of a token", activations, 0, kurtosis)
    yield plots.dumbbells("layers", f"{JUDGED}-bit error over the floor, RobuQ's grid", activations, 1, error)


def maps(activations: Activations) -> list[Map]:
    """Kurtosis and error over the floor, before and after rotation, at each time."""
    place = BITS.index(JUDGED)
    floor = activations.floors.uniform[place]

    def kurtosis(summary: Summary) -> tuple[str, float]:
        return f"{summary.kurtosis:z.1f}", _tint(summary.kurtosis, 5)

    def error(summary: Summary) -> tuple[str, float]:
        value = summary.gaussian[place] / floor
        return f"{value:.2f}", _tint(value - 1, 0.5)

    return [
        Map("Excess kurtosis as it comes", _cells(activations, "none", kurtosis)),
        Map("Excess kurtosis, rotated", _cells(activations, "full", kurtosis)),
        Map(f"{JUDGED}-bit error over the floor as it comes", _cells(activations, "none", error)),
        Map(f"{JUDGED}-bit error over the floor, rotated", _cells(activations, "full", error)),
    ]


def _cells(
    activations: Activations, view: str, cell: Callable[[Summary], tuple[str, float]]
) -> dict[str, list[tuple[str, float]]]:
    layers = plots.by_type(activations.layers)
    return {plots.short(layer.name): [cell(summary) for summary in layer.views[view].by_time] for layer in layers}


def _tint(value: float, full: float) -> float:
    """0 for nothing, 5 from `full` on."""
    return round(5 * min(1.0, abs(value) / full), 1)


def _line(layer: Layer, activations: Activations) -> list[str]:
    """Cells of a layer in the table: name, width, errors, then each statistic before and after rotation."""
    before, after = layer.views["none"], layer.views["full"]
    shape = [text for pair in zip(_shape(before), _shape(after), strict=True) for text in pair]
    errors = [f"{ratio(layer, activations, view):.2f}" for view in ("none", "full")]
    return [plots.short(layer.name), str(layer.width), *errors, _minmax(after, activations), *shape]


def _control(width: int, view: View, activations: Activations) -> list[str]:
    """The same cells for exactly normal tokens, which look the same rotated."""
    error = view.overall.gaussian[BITS.index(JUDGED)] / activations.floors.uniform[BITS.index(JUDGED)]
    shape = [text for text in _shape(view) for _ in range(2)]
    return ["normal tokens", str(width), f"{error:.2f}", f"{error:.2f}", _minmax(view, activations), *shape]


def _shape(view: View) -> list[str]:
    summary = view.overall
    return [
        f"{summary.kurtosis:z.2f}",
        f"{summary.skewness:z.2f}",
        f"{summary.pooled_kurtosis:z.2f}",
        f"{view.wasserstein:.3f}",
        f"{summary.outlier:.2f}",
        f"{100 * summary.rejected:.1f}",
    ]


def _minmax(view: View, activations: Activations) -> str:
    place = BITS.index(JUDGED)
    return f"{view.overall.minmax[place] / activations.floors.uniform[place]:.2f}"
