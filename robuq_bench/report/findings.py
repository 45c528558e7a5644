"""Sentences made from the numbers: who is best at each bit setting, and whether the paper's orderings hold here."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from typing import Literal

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import PaperNumber
from robuq_bench.report.rows import Row, apart
from robuq_bench.report.table import Table

HIGHER = {"IS", "Precision"}  # of the literature's metrics: the larger the better
OURS = "FD"  # judges orders whatever the source quotes: on small data the Inception Score ranks noise above shape


def headline(table: Table) -> str:
    """The first sentence of the page."""
    best = next((row for row in table.rows if row.rank == 1), None)
    if best is None:
        return "No quantised row came through: every one diverged."
    count = sum(row.competes for row in table.rows)
    full = next((row for row in table.rows if not row.quantised and row.status == "ok"), None)
    ahead = "the only quantised row that did not diverge" if count == 1 else f"the best of {count} quantised rows"
    against = f" against {table.text(full, 'FD')} in full precision" if full else ""
    return (
        f"{best.name} is {ahead}: {table.name('FD')} {table.text(best, 'FD')}{against}, "
        f"where real images score {table.floor_cells[table.position('FD')].text}."
    )


def by_bits(table: Table) -> Iterator[str]:
    """One or two sentences for each bit setting with two or more quantised rows, and what one seed is worth."""
    contests = {variant: group for variant, group in _grouped(table.rows).items() if len(group) > 1}
    for variant, group in contests.items():
        lost = [f"{row.method} diverged." for row in group if not row.competes]
        yield f"{variant}: " + " ".join([*_contest(group, table), *lost])
    if contests and len(table.seeds) == 1:
        yield "One training seed: whether a gap exceeds the spread between seeds is not known."


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Quantised rows by variant, in table order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.quantised:
            groups.setdefault(row.variant.name, []).append(row)
    return groups


def _contest(group: Sequence[Row], table: Table) -> Iterable[str]:
    """Who leads, by how much, and whether KID agrees."""
    good = sorted((row for row in group if row.competes), key=lambda row: row.figures["FD"].mean)
    if not good:
        return
    best, *others = good
    lead = f"{best.method} {'leads with' if others else 'alone came through, with'} "
    gaps = "".join(f", {_gap(best, row, table)}" for row in others)
    yield f"{lead}{table.name('FD')} {table.text(best, 'FD')}{gaps}."
    if others:
        favourite = min(good, key=lambda row: row.figures["KID"].mean)
        yield "KID agrees." if favourite is best else f"By KID {favourite.method} leads."


def _gap(best: Row, row: Row, table: Table) -> str:
    one, other = best.figures["FD"], row.figures["FD"]
    certainty = {None: "", True: ", beyond the intervals", False: ", but the intervals overlap"}[apart(one, other)]
    decimals = table.columns[table.position("FD")].decimals
    return f"{other.mean - one.mean:.{decimals}f} ahead of {row.method} ({table.text(row, 'FD')}{certainty})"


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
    verdict: Literal[
        "same order",
        "other order",
        "same order, one seed",
        "other order, one seed",
        "undecided: intervals overlap",
        "undecided: both diverged",
    ]


def verdicts(table: Table) -> Iterable[Verdict]:
    """Every pair of rows at one bit setting for which one source gives one number each of the same metric."""
    for group in _grouped(table.rows).values():
        for row, other in permutations(group, 2):
            theirs = _single(other)
            for key, mine in _single(row).items():
                if key in theirs and _better(mine.value, theirs[key].value, mine.metric):
                    yield _verdict(table, row, other, mine, theirs[key])


def _single(row: Row) -> dict[tuple[str, str], PaperNumber]:
    """(metric, source) -> the number, where a source gives just one. Its name ends at the first comma or semicolon."""
    found: dict[tuple[str, str], list[PaperNumber]] = {}
    for number in row.paper:
        source = number.source.replace(";", ",").partition(",")[0].strip()
        found.setdefault((number.metric, source), []).append(number)
    return {key: numbers[0] for key, numbers in found.items() if len(numbers) == 1}


def _verdict(table: Table, better: Row, worse: Row, mine: PaperNumber, theirs: PaperNumber) -> Verdict:
    return Verdict(
        variant=better.variant.name,
        better=better.method,
        worse=worse.method,
        metric=mine.metric,
        paper=f"{mine.value:g} vs {theirs.value:g}",
        source=mine.source,
        our_metric=table.name(OURS),
        ours=" vs ".join(table.text(row, OURS) for row in (better, worse)),
        verdict=_decide(better, worse),
    )


def _decide(better: Row, worse: Row) -> str:
    """The verdict on "`better` is better than `worse`". A diverged row is worse than any other."""
    if not better.competes or not worse.competes:
        if better.status == worse.status:
            return "undecided: both diverged"
        return "same order" if better.competes else "other order"
    one, other = better.figures[OURS], worse.figures[OURS]
    certain = apart(one, other)
    if certain is False:
        return "undecided: intervals overlap"
    order = "same order" if one.mean < other.mean else "other order"
    return f"{order}, one seed" if certain is None else order


def _better(value: float, than: float, metric: str) -> bool:
    return value > than if metric in HIGHER else value < than
