"""Sentences made from the numbers: who is best at each bit setting, and whether the paper's orderings hold here."""

from collections.abc import Iterable, Sequence
from itertools import groupby, permutations
from typing import Literal

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import PaperNumber
from robuq_bench.report.rows import Row, apart
from robuq_bench.report.table import Table

OURS = {"FID": "FD", "sFID": "sFD", "IS": "IS", "Precision": "precision"}  # the paper's metric -> ours
HIGHER = {"IS", "precision"}  # of ours: the larger the better


def headline(table: Table) -> str:
    """The first sentence of the page."""
    metric = table.name("FD")
    ranked = [row for row in table.rows if row.rank == 1]
    if not ranked:
        return "No quantised row came through: every one diverged."
    best, count = ranked[0], sum(row.competes for row in table.rows)
    full = next((row for row in table.rows if not row.quantised and row.status == "ok"), None)
    against = f" against {_value(full, 'FD')} in full precision" if full else ""
    ahead = "the only quantised row that did not diverge" if count == 1 else f"the best of {count} quantised rows"
    return (
        f"{best.name} is {ahead}: {metric} {_value(best, 'FD')}{against} "
        f"(real images score {table.floor.FD:.4g})."
    )


def by_bits(table: Table) -> Iterable[str]:
    """One sentence for each bit setting with two or more quantised rows."""
    quantised = [row for row in table.rows if row.quantised]
    for variant, group in _grouped(quantised).items():
        good = sorted((row for row in group if row.competes), key=lambda row: row.figures["FD"].mean)
        lost = [f"{row.method} diverged" for row in group if not row.competes]
        if len(group) > 1:
            yield f"{variant}: " + "; ".join([*_ordered(good, table), *lost]) + "."


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    rows = sorted(rows, key=lambda row: [other.variant.name for other in rows].index(row.variant.name))
    return {name: list(group) for name, group in groupby(rows, key=lambda row: row.variant.name)}


def _ordered(good: Sequence[Row], table: Table) -> Iterable[str]:
    """ "A is best with ..." and how far behind each other row is."""
    if not good:
        return
    best = good[0]
    yield f"{best.method} has {table.name('FD')} {_value(best, 'FD')}"
    for row in good[1:]:
        gap = row.figures["FD"].mean - best.figures["FD"].mean
        yield f"{row.method} {_value(row, 'FD')}, {gap:.3g} behind{_certainty(best, row)}"
    by_kid = min(good, key=lambda row: row.figures["KID"].mean)
    if len(good) > 1:
        yield "KID agrees on the best" if by_kid is best else f"KID prefers {by_kid.method}"


def _certainty(one: Row, other: Row, metric: str = "FD") -> str:
    beyond = apart(one.figures[metric], other.figures[metric])
    if beyond is None:
        return ""
    return ", beyond the intervals" if beyond else ", within the intervals"


def _value(row: Row, metric: str) -> str:
    figure = row.figures[metric]
    spread = "" if figure.half_width is None else f" ± {figure.half_width:.2g}"
    return f"{figure.mean:.4g}{spread}"


class Verdict(Model):
    """Whether an ordering that one source reports for two methods at one bit setting holds here, too.

    better, worse: the methods by the source's numbers; ours: our two figures in that order.
    """

    variant: str
    better: str
    worse: str
    metric: str
    paper: str
    source: str
    our_metric: str
    ours: str
    verdict: Literal["same order", "other order", "undecided: intervals overlap", "undecided: both diverged"]


def verdicts(table: Table) -> Iterable[Verdict]:
    """Every pair of rows at one bit setting for which one source gives one number each of the same metric."""
    for group in _grouped([row for row in table.rows if row.quantised]).values():
        for row, other in permutations(group, 2):
            theirs = _single(other)
            for key, mine in _single(row).items():
                if key in theirs and _better(mine.value, theirs[key].value, OURS[mine.metric]):
                    yield _verdict(table, row, other, mine, theirs[key])


def _single(row: Row) -> dict[tuple[str, str], PaperNumber]:
    """(metric, source) -> the number, where a source gives just one. Its name ends at the first comma or semicolon."""
    found: dict[tuple[str, str], list[PaperNumber]] = {}
    for number in row.paper:
        source = number.source.replace(";", ",").partition(",")[0].strip()
        found.setdefault((number.metric, source), []).append(number)
    return {key: numbers[0] for key, numbers in found.items() if len(numbers) == 1}


def _verdict(table: Table, better: Row, worse: Row, mine: PaperNumber, theirs: PaperNumber) -> Verdict:
    metric = OURS[mine.metric]
    return Verdict(
        variant=better.variant.name,
        better=better.method,
        worse=worse.method,
        metric=mine.metric,
        paper=f"{mine.value:g} vs {theirs.value:g}",
        source=mine.source,
        our_metric=table.name(metric),
        ours=" vs ".join(_value(row, metric) if row.status == "ok" else "diverged" for row in (better, worse)),
        verdict=_decide(better, worse, metric),
    )


def _decide(better: Row, worse: Row, metric: str) -> str:
    """The verdict on "`better` is better than `worse`". A diverged row is worse than any other."""
    if not better.competes or not worse.competes:
        if better.status == worse.status:
            return "undecided: both diverged"
        return "same order" if better.competes else "other order"
    one, other = better.figures[metric], worse.figures[metric]
    if apart(one, other) is False:
        return "undecided: intervals overlap"
    return "same order" if _better(one.mean, other.mean, metric) else "other order"


def _better(value: float, than: float, metric: str) -> bool:
    return value > than if metric in HIGHER else value < than
