"""The table as a value: columns, cells and footnotes, rounded once, so that every format prints the same numbers."""

from typing import Any, Literal

from robuq_bench.config.base import Model
from robuq_bench.metrics.extractors import label
from robuq_bench.report.comparison import METRIC, Comparison
from robuq_bench.report.records import Scores
from robuq_bench.report.rows import Row


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
    """All that the table and the page say about one preset. cells, floor_cells: one a column; comparisons: every two
    rows that compete at one bit setting, tested as one family.

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
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def n(self) -> int | None:
        """Generated images a row; None when every row diverged."""
        return next((run.scores.n for row in self.rows for run in row.runs if run.scores), None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds of the row that has most."""
        return max((tuple(run.seed for run in row.runs) for row in self.rows), key=len)

    def text(self, row: Row, key: str) -> str:
        """A figure as the table prints it."""
        return self.cells[self.rows.index(row)][self.position(key)].text

    def comparison(self, one: Row, other: Row) -> Comparison:
        """The comparison of two competing rows of one bit setting, seen from `one`."""
        pair = {one.key, other.key}
        return next(c for c in self.comparisons if {c.one, c.other} == pair).seen_from(one.key)

    def gap(self, comparison: Comparison) -> str:
        """A difference with its interval, as the table prints its metric: "9.8 ± 2.1"."""
        decimals, gap = self.columns[self.position(METRIC)].decimals, comparison.difference
        spread = "" if gap.half_width is None else f" ± {gap.half_width:.{decimals}f}"
        return f"{gap.mean:.{decimals}f}{spread}"

    def position(self, key: str) -> int:
        """Place of the column `key`."""
        return [column.key for column in self.columns].index(key)

    def name(self, metric: str) -> str:
        """Name of a metric with its extractor, such as FD-EffNetLite0."""
        return label(metric, self.floor.extractor)
