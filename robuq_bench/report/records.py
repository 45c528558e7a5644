"""The JSON files that other stages hand to the report, as far as it reads them. Further keys are ignored."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator

from robuq_bench import provenance
from robuq_bench.config.base import Model, build
from robuq_bench.files import read_json

DASH = "–"  # no value


class Record(Model):
    """A frozen record; no NaN passes."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Scores(Record):
    """What `metrics.evaluate` returns: Fréchet distances, raw KID, precision and recall 0…1, and what made them."""

    FD: float
    sFD: float
    IS: float
    KID: float
    KID_se: float
    precision: float
    recall: float
    n: int
    n_reference: int | None  # None: ADM's files do not say
    extractor: str
    digest: str
    protocol: str


class Latency(Record):
    """Milliseconds of one forward pass of `batch` images: median, 20th and 80th percentile of `repeats`."""

    label: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    batch: int
    repeats: int
    device: str


class Size(Record):
    """Bytes of a stored model."""

    bytes: int
    label: Literal["packed"]


class Stage(Record):
    """What every stage of a run records."""

    status: Literal["ok", "diverged"]
    reason: str = ""
    provenance: dict[str, Any]


class Train(Stage):
    """train.json: training loss of every step; the held-out losses are absent when diverged. plan: of the training."""

    losses: tuple[float, ...]
    held_out_loss: float | None = None
    plan: dict[str, Any] = Field(default_factory=dict)


class Metrics(Stage):
    """metrics.json. also: of further extractors; protocol: sampling settings; packed: SHA-256; sampled: provenance of
    the images."""

    scores: Scores | None
    also: tuple[Scores, ...] = ()
    protocol: dict[str, Any]
    packed: str
    sampled: dict[str, Any] | None = None


class Deployed(Record):
    """Latency of the deployed model, or the reason why there is none."""

    latency: Latency | None
    reason: str


class Point(Record):
    """A point of the front: the least loss at a cost."""

    cost: int
    loss: float


class Bits(Stage):
    """bits.json, as `allocate.allocation.allocate` makes it. profile: SHA-256 of profile.json."""

    profile: str
    cost: Literal["average_bits", "macs", "bitops", "latency"]
    unit: str
    sensitivity: Literal["loss", "mse"]
    bits: dict[str, int]
    budget: int
    achieved: int
    minimised: float
    minimised_uniform: float | None
    predicted_loss_increase: float
    predicted_loss_increase_uniform: float | None
    averages: dict[str, float]
    weighted_average: float
    pareto: tuple[Point, ...]


class Measure(Stage):
    """measure.json. packed: SHA-256 of what was measured."""

    size: Size | None
    latency: Latency | None
    deployed: Deployed | None = None
    packed: str


class Floor(Record):
    """floor.json: held-out real images scored against the reference; also: of further extractors."""

    scores: Scores
    also: tuple[Scores, ...] = ()
    provenance: dict[str, Any]


class AblationColumn(Record):
    """A column of an ablation; `format` is a Python format such as ".3f"."""

    key: str
    title: str
    format: str = ""


class AblationPlot(Record):
    """Which columns to draw: y against x, one line for each value of `series`. error: half-widths of y."""

    x: str
    y: str
    series: str
    xlabel: str
    ylabel: str
    error: str | None = None
    log: bool = False


class Ablation(Record):
    """ablations/<name>.json: a question, a table, a plot and one sentence made from the numbers.

    note: the footnote of the table, "" for none.
    """

    name: str
    title: str
    question: str
    sentence: str
    columns: tuple[AblationColumn, ...]
    rows: tuple[dict[str, float | int | str | bool | None], ...]
    plot: AblationPlot | None = None
    note: str = ""
    label: str
    provenance: dict[str, Any]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text: numbers by the format of their column, no value as a dash."""
        return [[_formatted(row[column.key], column.format) for column in self.columns] for row in self.rows]

    @model_validator(mode="after")
    def _prints(self) -> "Ablation":
        keys = [column.key for column in self.columns]
        keys += [self.plot.x, self.plot.y, self.plot.series] if self.plot else []
        keys += [self.plot.error] if self.plot and self.plot.error else []
        if missing := [key for key in keys for row in self.rows if key not in row]:
            raise ValueError(f"a row lacks '{missing[0]}'")
        _ = self.cells  # a format that does not fit its values raises here
        return self


def _formatted(value: float | int | str | bool | None, form: str) -> str:
    if value is None:
        return DASH
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """Read `path` as `kind`.

    Raises BenchError, one line, when it is missing, damaged, incomplete, or has no whole provenance.
    """
    raw = read_json(path)
    if not isinstance(raw, dict):
        raw = {"provenance": None}
    provenance.check(raw, str(path))
    return build(kind, raw, str(path))
