"""From results to the table: which columns, how many decimals, what is best. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from robuq_bench import __version__
from robuq_bench.metrics.extractors import label
from robuq_bench.report.comparison import compare_pairs, rivals
from robuq_bench.report.inputs import Results, drawn_by
from robuq_bench.report.notes import notes
from robuq_bench.report.records import DASH, Floor
from robuq_bench.report.rows import QUALITY, Row, further
from robuq_bench.report.table import Cell, Column, Table

DIGITS = 4  # significant digits of the median of a column
MEGABYTES = 1e7  # bytes of the largest model from which sizes are in MB


def make_table(preset: str, title: str, results: Results, left_out: Mapping[str, str] = MappingProxyType({})) -> Table:
    """The table of `results`. left_out: row -> what of it is missing, for its footnotes."""
    columns = _columns(results)
    table = Table(
        version=__version__,
        preset=preset,
        title=title,
        sampling=results.sampling,
        floor=results.floor.scores,
        floor_provenance=results.floor.provenance,
        columns=columns,
        rows=results.rows,
        cells=tuple(tuple(_cell(column, row, results.rows) for column in columns) for row in results.rows),
        floor_cells=tuple(_floor_cell(column, results.floor) for column in columns),
        comparisons=compare_pairs(rivals(results.rows)),
        notes=(),
    )
    missing = [f"Not whole: {'; '.join(f'{row}: {why}' for row, why in left_out.items())}."] if left_out else []
    return table.model_copy(update={"notes": (*notes(table), *missing)})


def _columns(results: Results) -> tuple[Column, ...]:
    extractor, rows, how = results.floor.scores.extractor, results.rows, drawn_by(results.sampling)
    others = results.floor.also
    sizes = [row.figures["size"].mean for row in rows if row.figures]
    unit, scale = ("MB", 1e-6) if max(sizes, default=0) >= MEGABYTES else ("kB", 1e-3)
    plan = [
        ("FD", label("FD", extractor), how, "lower", 1),
        ("sFD", label("sFD", extractor), how, "lower", 1),
        ("IS", label("IS", extractor), how, "higher", 1),
        ("KID", f"{label('KID', extractor)} ×1000", how, "lower", 1000),
        *[(further("FD", other.extractor), label("FD", other.extractor), how, "lower", 1) for other in others],
        ("precision", label("precision", extractor), how, "higher", 1),
        ("recall", label("recall", extractor), how, "higher", 1),
        ("held_out_loss", "held-out loss", "simulated", "lower", 1),
        ("size", f"size, {unit}", "packed", "", scale),
        ("compression", "× smaller", "packed", "", 1),
        ("latency", "latency, ms", "", "", 1),
        *[("deployed", "deployed, ms", "", "", 1)] * any("deployed" in row.figures for row in rows),
        ("rank", "our rank", "", "", 1),
    ]
    return tuple(
        Column(key=key, title=title, label=how, better=better, scale=scale, decimals=_decimals(key, scale, results))
        for key, title, how, better, scale in plan
    )


def _decimals(key: str, scale: float, results: Results) -> int:
    """Decimals that show the median of a column with `DIGITS` digits; at most 4."""
    fixed = {"compression": 1, "precision": 3, "recall": 3, "rank": 0}
    if key in fixed:
        return fixed[key]
    values = [abs(row.figures[key].mean * scale) for row in results.rows if key in row.figures]
    median = statistics.median(values) if values else 0
    return min(max(DIGITS - 1 - math.floor(math.log10(median)), 0), 4) if median > 0 else 2


def _cell(column: Column, row: Row, rows: Sequence[Row]) -> Cell:
    if column.key in ("compression", "rank"):
        return _number(column, getattr(row, column.key))
    if column.key in row.figures:
        figure = row.figures[column.key]
        # Intervals are for what training decides; sizes do not vary, and latency varies with the machine's day.
        spread = figure.half_width * column.scale if figure.half_width is not None and column.better else None
        tag = "" if column.label else figure.label
        return _number(column, figure.mean * column.scale, spread, tag, _is_best(column, row, rows))
    return Cell(number="diverged" if column.key in QUALITY and row.status == "diverged" else DASH)


def _number(
    column: Column, value: float | None, spread: float | None = None, tag: str = "", best: bool = False
) -> Cell:
    if value is None:
        return Cell(number=DASH)
    number, width = (
        "" if x is None else f"{round(x, column.decimals) + 0.0:.{column.decimals}f}" for x in (value, spread)
    )  # + 0.0 turns -0.0 into 0.0
    return Cell(number=number, spread=width, tag=tag, best=best, value=value)


def _is_best(column: Column, row: Row, rows: Sequence[Row]) -> bool:
    """Whether `row` is best in `column` among the rows of its bit setting; a lone row is not."""
    peers = [other for other in rows if other.competes and other.variant.name == row.variant.name]
    if not column.better or not row.competes or len(peers) < 2:
        return False
    means = {peer.figures[column.key].mean for peer in peers}
    best = min(means) if column.better == "lower" else max(means)
    return len(means) > 1 and row.figures[column.key].mean == best


def _floor_cell(column: Column, floor: Floor) -> Cell:
    others = {further("FD", scores.extractor): scores.FD for scores in floor.also}
    value = others.get(column.key, getattr(floor.scores, column.key, None))
    return _number(column, None if value is None else value * column.scale)
