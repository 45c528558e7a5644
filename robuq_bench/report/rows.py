"""Rows of the table as values: what a method reached at one bit setting, over all its seeds. Nothing is read here."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import PaperNumber, Variant
from robuq_bench.metrics.intervals import t_interval
from robuq_bench.report.records import Latency, Scores

QUALITY = ("FD", "sFD", "IS", "KID", "precision", "recall", "held_out_loss")
Status = Literal["ok", "diverged"]


class Figure(Model):
    """One number over seeds, labelled with how it was come by (simulated, packed, kernel ...).

    mean ± half_width: Student's 95 % t interval, null for one run; values: one a seed. Units as in `Run`.
    """

    label: str
    mean: float
    half_width: float | None
    values: tuple[float, ...]


class Run(Model):
    """One seed of one row.

    scores: of the first extractor, also: of the others; steps: of training; held_out_loss: mean squared velocity error;
    size: bytes of the packed file, whose SHA-256 is `packed`; bits: activation bits per layer; provenance: stage ->
    record.
    """

    seed: int
    status: Status
    reason: str
    packed: str
    size: int | None
    scores: Scores | None
    also: tuple[Scores, ...] = ()
    steps: int | None = None
    held_out_loss: float | None
    latency: Latency | None
    deployed: Latency | None = None
    bits: dict[str, int]
    provenance: dict[str, dict[str, Any]]


class Row(Model):
    """A method at one bit setting. It has diverged when any of its runs has: survivors alone would flatter it.

    figures: by name, `QUALITY`, FD of `further` extractors, "size", "latency", "deployed"; none when diverged.
    compression: full-precision size over this one. rank: 1 is the lowest mean FD of the quantised rows; null for full
    precision and diverged rows.
    """

    variant: Variant
    status: Status
    reason: str
    runs: tuple[Run, ...]
    figures: dict[str, Figure]
    compression: float | None = None
    rank: int | None = None

    @property
    def key(self) -> str:
        return f"{self.variant.recipe}/{self.variant.name}"

    @property
    def changes(self) -> str:
        """What the recipe expression changes, such as "activation.scale=absmax"; "" for a recipe as it stands."""
        return self.variant.recipe.partition(",")[2].replace(",", ", ")

    @property
    def method(self) -> str:
        """Name of the method in tables and legends."""
        return self.variant.method.title + (f" [{self.changes}]" if self.changes else "")

    @property
    def name(self) -> str:
        return f"{self.method} {self.variant.name}"

    @property
    def bits(self) -> str:
        """Weight and activation bits as tables write them: 1.58/2."""
        return f"{self.variant.weight_bits:g}/{self.variant.activation_bits}"

    @property
    def quantised(self) -> bool:
        return self.variant.method.training != "none"

    @property
    def competes(self) -> bool:
        """Whether it is ranked: quantised, and not diverged."""
        return self.quantised and self.status == "ok"

    @property
    def paper(self) -> tuple[PaperNumber, ...]:
        """Numbers quoted from the literature for this bit setting."""
        return tuple(number for number in self.variant.method.paper if number.variant == self.variant.name)


def make_row(variant: Variant, runs: Sequence[Run], how: str = "simulated") -> Row:
    """Aggregate the runs of one row. Rank and compression need the other rows: see `compare`.

    how: label of the scores, "simulated" or "deployed": which model drew the images.
    """
    reason = _reason(runs)
    figures = {} if reason else _figures(runs, how)
    return Row(
        variant=variant,
        status="diverged" if reason else "ok",
        reason=reason,
        runs=tuple(runs),
        figures=figures,
    )


def further(metric: str, extractor: str) -> str:
    """Name of a figure under another extractor than the first."""
    return f"{metric}-{extractor}"


def compare(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with what depends on the others: rank (equal means share one) and compression."""
    rows = tuple(rows)
    full = next((row for row in rows if not row.quantised and row.status == "ok"), None)
    distances = [row.figures["FD"].mean for row in rows if row.competes]
    return tuple(
        row.model_copy(update={"rank": _rank(row, distances), "compression": _compression(row, full)}) for row in rows
    )


def _reason(runs: Sequence[Run]) -> str:
    """Why the row counts as diverged, or ""."""
    bad = [run for run in runs if run.status == "diverged"]
    if not bad or len(runs) == 1:
        return bad[0].reason or "no reason was recorded" if bad else ""
    return f"{len(bad)} of {len(runs)} seeds: seed {bad[0].seed}: {bad[0].reason or 'no reason was recorded'}"


def _figures(runs: Sequence[Run], how: str) -> dict[str, Figure]:
    found = {name: _figure([_quality(run, name) for run in runs], how) for name in QUALITY}
    for scores in runs[0].also:
        others = [other for run in runs for other in run.also if other.extractor == scores.extractor]
        found[further("FD", scores.extractor)] = _figure([other.FD for other in others], how)
    found["held_out_loss"] = _figure([run.held_out_loss for run in runs], "simulated")
    found["size"] = _figure([run.size for run in runs], "packed")
    if all(run.latency for run in runs):
        found["latency"] = _figure([run.latency.median_ms for run in runs], runs[0].latency.label)
    if all(run.deployed for run in runs):
        found["deployed"] = _figure([run.deployed.median_ms for run in runs], runs[0].deployed.label)
    return found


def _quality(run: Run, name: str) -> float:
    return run.held_out_loss if name == "held_out_loss" else getattr(run.scores, name)


def _figure(values: Sequence[float], label: str) -> Figure:
    interval = t_interval(values)
    return Figure(label=label, mean=interval.mean, half_width=interval.half_width, values=tuple(values))


def _rank(row: Row, distances: Sequence[float]) -> int | None:
    if not row.competes:
        return None
    return 1 + sum(distance < row.figures["FD"].mean for distance in distances)


def _compression(row: Row, full: Row | None) -> float | None:
    if full is None or row.status != "ok":
        return None
    return full.figures["size"].mean / row.figures["size"].mean
