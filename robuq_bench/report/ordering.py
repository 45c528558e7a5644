"""The order of rows in the literature against their order here: rank correlation and discordant pairs."""

from collections.abc import Iterable, Sequence
from itertools import combinations

from scipy import stats

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import PaperNumber
from robuq_bench.metrics.extractors import label
from robuq_bench.report.findings import HIGHER
from robuq_bench.report.rows import Row
from robuq_bench.report.verdict import scores

LEAST = 3  # rows from which an order is one
OURS = {"FID": "FD", "sFID": "sFD", "IS": "FD", "Precision": "precision"}
"""What is set against the literature's metrics: FD for IS as well, which on small data ranks noise above shape."""


class Discord(Model):
    """By the source `better` beats `worse`; here it does not. theirs, ours: in that order."""

    better: str
    worse: str
    theirs: tuple[float, float]
    ours: tuple[float, float]


class Ordering(Model):
    """One source and metric against one of ours, over rows of one bit setting or (variant "") all that the source has.

    tau: Kendall's, 1 for the same order; p: of tau = 0, two-sided.
    """

    source: str
    metric: str
    variant: str
    ours: str
    rows: int
    tau: float
    p: float
    discords: tuple[Discord, ...]

    @property
    def pairs(self) -> int:
        return self.rows * (self.rows - 1) // 2


def orderings(rows: Sequence[Row], extractors: Sequence[str]) -> Iterable[Ordering]:
    """Every source that has one number of a metric for `LEAST` or more of the rows, under each extractor.

    Rows of several bit settings are put in one order only where the source gave all of them one budget: where its
    setting says a number of steps they are compared setting by setting. Full precision, rows of other budgets than the
    table's and rows that diverged are left out. A source with FID is judged by it. Ours is the mean over seeds.
    """
    for (source, metric, variant), quoted in _quoted(row for row in rows if row.competes).items():
        for extractor in extractors:
            found = [(row, value, scores(row, extractor, OURS[metric])) for row, value in quoted]
            ranked = [(row.name, value, sum(s.values()) / len(s)) for row, value, s in found if s]
            if len(ranked) >= LEAST:
                yield _ordering((source, metric, variant), label(OURS[metric], extractor), ranked)


def _quoted(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[tuple[Row, float]]]:
    """(source, metric, variant or "") -> the rows and their numbers; a source's name ends at the first ',' or ';'."""
    quoted = [(row, number) for row in rows if not row.changes for number in row.paper]
    judged = {_source(number) for _, number in quoted if number.metric == "FID"}
    quoted = [(row, number) for row, number in quoted if number.metric == "FID" or _source(number) not in judged]
    budgeted = {_source(number) for _, number in quoted if " steps" in number.setting.rpartition("cfg")[2]}
    found: dict[tuple[str, str, str], dict[str, tuple[Row, float]]] = {}
    for row, number in quoted:
        variant = row.variant.name if _source(number) in budgeted else ""
        found.setdefault((_source(number), number.metric, variant), {})[row.key] = (row, number.value)
    return {key: [*values.values()] for key, values in found.items()}


def _source(number: PaperNumber) -> str:
    return number.source.replace(";", ",").partition(",")[0].strip()


def _ordering(theirs: tuple[str, str, str], ours: str, ranked: Sequence[tuple[str, float, float]]) -> Ordering:
    source, metric, variant = theirs
    sign = -1 if metric in HIGHER else 1  # so that lower is better in theirs as in ours
    test = stats.kendalltau([sign * value for _, value, _ in ranked], [own for *_, own in ranked])
    discords = []
    for pair in combinations(ranked, 2):
        (one, value, own), (other, its_value, its_own) = sorted(pair, key=lambda entry: sign * entry[1])
        if value != its_value and own > its_own:
            discords.append(Discord(better=one, worse=other, theirs=(value, its_value), ours=(own, its_own)))
    return Ordering(
        source=source,
        metric=metric,
        variant=variant,
        ours=ours,
        rows=len(ranked),
        tau=float(test.statistic),
        p=float(test.pvalue),
        discords=tuple(discords),
    )


def describe(ordering: Ordering) -> str:
    """One sentence."""
    turned = f"{len(ordering.discords)} of {ordering.pairs} pairs the other way round"
    at = f" at {ordering.variant}" if ordering.variant else ""
    return (
        f"{ordering.metric} of {ordering.source}{at} against {ordering.ours}: Kendall's tau {ordering.tau:.2f} "
        f"over {ordering.rows} rows, {turned}."
    )
