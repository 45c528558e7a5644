"""The table as a value: columns, cells and footnotes, rounded once, so that every format prints the same numbers."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from robuq_bench import __version__
from robuq_bench.config.base import Model
from robuq_bench.metrics.extractors import label
from robuq_bench.report.inputs import Results
from robuq_bench.report.records import Scores
from robuq_bench.report.rows import QUALITY, Row

DIGITS = 4  # significant digits of the median of a column
DASH = "–"
MEGABYTES = 1e7  # bytes of the largest model from which sizes are in MB


class Column(Model):
    """A column: `title` carries the extractor, `label` says how its figures were come by ("" where cells do)."""

    key: str
    title: str
    label: str
    better: Literal["lower", "higher", ""]
    scale: float
    decimals: int

    @property
    def arrow(self) -> str:
        return {"lower": " ↓", "higher": " ↑", "": ""}[self.better]


class Cell(Model):
    """A printed number and its half-width ("" without interval). value: the number at printing scale, for sorting;
    tag: label of this one cell; best: best of its bit setting."""

    number: str
    spread: str = ""
    tag: str = ""
    best: bool = False
    value: float | None = None

    @property
    def text(self) -> str:
        spread = f" ± {self.spread}" if self.spread else ""
        tag = f" ({self.tag})" if self.tag else ""
        return f"{self.number}{spread}{tag}"


class Table(Model):
    """All that the table and the page say about one preset. cells, floor_cells: one a column.

    It holds no time and no path of its own: the same results give the same bytes. Each run and the floor carry
    their provenance."""

    version: str
    preset: str
    title: str
    sampling: dict[str, Any]
    floor: Scores
    floor_provenance: dict[str, Any]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[tuple[Cell, ...], ...]
    floor_cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @property
    def n(self) -> int | None:
        """Generated images a row; None when every row diverged."""
        return next((run.scores.n for row in self.rows for run in row.runs if run.scores), None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds of the row that has most."""
        return max((tuple(run.seed for run in row.runs) for row in self.rows), key=len)

    def name(self, metric: str) -> str:
        """Name of a metric with its extractor, such as FD-EffNetLite0."""
        return label(metric, self.floor.extractor)


def make_table(preset: str, title: str, results: Results) -> Table:
    """The table of `results`."""
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
        floor_cells=tuple(_floor_cell(column, results.floor.scores) for column in columns),
        notes=(),
    )
    return table.model_copy(update={"notes": tuple(notes(table))})


def _columns(results: Results) -> tuple[Column, ...]:
    extractor, rows = results.floor.scores.extractor, results.rows
    sizes = [row.figures["size"].mean for row in rows if row.figures]
    unit, scale = ("MB", 1e-6) if max(sizes, default=0) >= MEGABYTES else ("kB", 1e-3)
    plan = [
        ("FD", label("FD", extractor), "simulated", "lower", 1),
        ("sFD", label("sFD", extractor), "simulated", "lower", 1),
        ("IS", label("IS", extractor), "simulated", "higher", 1),
        ("KID", f"{label('KID', extractor)} ×1000", "simulated", "lower", 1000),
        ("precision", label("precision", extractor), "simulated", "higher", 1),
        ("recall", label("recall", extractor), "simulated", "higher", 1),
        ("held_out_loss", "held-out loss", "simulated", "lower", 1),
        ("size", f"size, {unit}", "packed", "", scale),
        ("compression", "compression ×", "packed", "", 1),
        ("latency", "latency, ms", "", "", 1),
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
        spread = None if figure.half_width is None else figure.half_width * column.scale
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
    choose = min if column.better == "lower" else max
    return row.figures[column.key].mean == choose(peer.figures[column.key].mean for peer in peers)


def _floor_cell(column: Column, floor: Scores) -> Cell:
    value = getattr(floor, column.key, None)
    return _number(column, None if value is None else value * column.scale)


def notes(table: Table) -> Iterable[str]:
    """Footnotes, each a sentence or two."""
    floor, sampling = table.floor, table.sampling
    images = "no images" if table.n is None else f"N = {table.n} generated images a row, the same image seeds in all"
    yield f"{images}; reference: {floor.n_reference} real images."
    other = f", another N than the rows', which shifts every {table.name('FD')}" if floor.n != table.n else ""
    yield f"Floor: {floor.n} real held-out images scored like generated ones (N = {floor.n}{other}); not a model."
    yield (
        f"Sampling: {sampling.get('scheduler')}, {sampling.get('steps')} steps, "
        f"classifier-free guidance {sampling.get('guidance')}."
    )
    yield _extractor_note(floor)
    yield _seed_note(table.rows)
    yield (
        "Labels: simulated = fake quantisation in floating point; packed = bytes of the stored file; "
        "kernel = ran on low-bit kernels."
    )
    yield from _latency_notes(table.rows)
    yield f"Our rank: by mean {table.name('FD')} of the quantised rows that did not diverge. Bold: best of a bit setting."
    for row in table.rows:
        if row.status == "diverged":
            yield f"{row.name} diverged: {row.reason}"


def _extractor_note(floor: Scores) -> str:
    text = f"Features: {floor.extractor} (SHA-256 {floor.digest[:8]}…)."
    published = label("FD", floor.extractor) == "FID"
    return text if published else f"{text} Not Inception: not FID, and not comparable with published numbers."


def _seed_note(rows: Sequence[Row]) -> str:
    most = max(rows, key=lambda row: len(row.runs))
    if len(most.runs) == 1:
        return "One seed: no interval."
    seeds = ", ".join(str(run.seed) for run in most.runs)
    once = " A row without ± was trained once." if any(len(row.runs) == 1 for row in rows) else ""
    return f"± is the half-width of Student's 95 % t interval over {len(most.runs)} training seeds ({seeds}).{once}"


def _latency_notes(rows: Sequence[Row]) -> Iterable[str]:
    timed = [run.latency for row in rows for run in row.runs if run.latency]
    if not timed:
        return
    devices, batches = (sorted({getattr(t, key) for t in timed}) for key in ("device", "batch"))
    yield (
        f"Latency: median of {timed[0].repeats} forward passes of {' or '.join(map(str, batches))} images "
        f"on {' and '.join(devices)}."
    )
    if len(devices) > 1 or len(batches) > 1:
        yield "Latencies are of several devices or batch sizes: do not compare them."


