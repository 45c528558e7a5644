"""The study as a value: every row with every seed, a few images and thinned curves, read back on any machine."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from robuq_bench.config.base import build, split_items
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json
from robuq_bench.report.inputs import drawn_by
from robuq_bench.report.records import Record, Scores
from robuq_bench.report.rows import Row

BUDGET = "schedule.steps="
STAGES = ("train", "sample", "evaluate")


class Study(Record):
    """What `robuq-bench study-rows` writes; a table's JSON is one without images and curves.

    left_out: row -> what of it was not run, of a study that was cut.
    floor: under the first extractor, floor_also: under the others. strips: row key -> PNG in base64 of the preset's
    rows, the same image seeds in all; "" is real images. curves: row key -> running mean of the training loss at evenly
    spread steps.
    """

    version: str
    preset: str
    title: str
    sampling: dict[str, Any]
    floor: Scores
    floor_also: tuple[Scores, ...] = ()
    floor_provenance: dict[str, Any]
    rows: tuple[Row, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    strips: dict[str, str] = Field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def extractors(self) -> tuple[str, ...]:
        return (self.floor.extractor, *(scores.extractor for scores in self.floor_also))

    @property
    def label(self) -> str:
        """Which model drew the images: "simulated" or "deployed"."""
        return drawn_by(self.sampling)

    def floor_of(self, extractor: str) -> Scores:
        return next(scores for scores in (self.floor, *self.floor_also) if scores.extractor == extractor)


def read_study(paths: Sequence[Path]) -> Study:
    """The studies, or tables, in `paths` as one; of a row that stands in several the first counts.

    Raises BenchError when they were drawn or scored in other ways.
    """
    first, *others = (build(Study, read_json(path), str(path)) for path in paths)
    rows = {row.key: row for row in first.rows}
    for path, other in zip(paths[1:], others, strict=True):
        if (other.sampling, other.floor.digest, other.floor.n) != (first.sampling, first.floor.digest, first.floor.n):
            raise BenchError(f"{path}: other sampling settings or features than {paths[0]}; make one of them again")
        rows |= {row.key: row for row in other.rows if row.key not in rows}
    left_out = {row: why for study in (first, *others) for row, why in study.left_out.items() if row not in rows}
    return first.model_copy(update={"rows": tuple(rows.values()), "left_out": first.left_out | left_out})


def without_budget(row: Row) -> str:
    """The row's recipe expression without its number of steps: rows that share it differ in budget alone."""
    return ",".join(part for part in split_items(row.variant.recipe) if not part.startswith(BUDGET))


def steps(row: Row) -> int | None:
    """QAT steps of the row; None of what is not trained so, and in records that do not say."""
    return row.runs[0].steps if row.variant.method.training == "qat" else None


def budgets(rows: Iterable[Row]) -> list[tuple[str, int, str]]:
    """(recipe without its budget, steps, row key) of every trained row whose steps are recorded."""
    return [(without_budget(row), steps(row), row.key) for row in rows if steps(row)]


def device_seconds(study: Study) -> dict[str, dict[str, float]]:
    """Device -> stage -> seconds that jobs held it, over all rows and seeds; on a CPU the wall time of the jobs."""
    found: dict[str, dict[str, float]] = {}
    records = [("reference", study.floor_provenance)]
    records += [
        (stage, run.provenance[stage])
        for row in study.rows
        for run in row.runs
        for stage in STAGES
        if stage in run.provenance
    ]
    for stage, record in records:
        own = found.setdefault(str(record["device"]), {})
        own[stage] = own.get(stage, 0.0) + (record.get("device_seconds") or record.get("seconds") or 0.0)
    return found
