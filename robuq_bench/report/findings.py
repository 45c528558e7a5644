"""Sentences made from the numbers: who is best at each bit setting, and whether the paper's orderings hold here."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from typing import Literal

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import PaperNumber
from robuq_bench.report.comparison import METRIC, Comparison, p_text
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Table

HIGHER = {"IS", "Precision"}  # of the literature's metrics: the larger the better


def headline(table: Table) -> str:
    """The first sentence of the page."""
    best = next((row for row in table.rows if row.rank == 1), None)
    if best is None:
        return "No quantised row came through: every one diverged."
    quantised = [row for row in table.rows if row.quantised]
    count = sum(row.competes for row in quantised)
    full = next((row for row in table.rows if not row.quantised and row.status == "ok"), None)
    lost = " that did not diverge" if len(quantised) > count else ""
    ahead = f"the only quantised row{lost}" if count == 1 else f"the best of {count} quantised rows"
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
        yield "One training seed: no difference can be tested."


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
    gap = table.comparison(best, row)
    chance = " and not beyond chance" if gap.certain is False else ""
    untested = "" if len(table.seeds) == 1 else "; one seed, not tested"
    certainty = untested if gap.p is None else f"; {p_text(gap.p)}{chance}"
    return f"{table.gap(gap)} ahead of {row.method} ({table.text(row, METRIC)}{certainty})"


class Verdict(Model):
    """Whether an ordering that one source reports for two methods at one bit setting holds here, too.

    better, worse: the methods by the source's numbers; ours: our two figures in that order; difference: of the second
    and the first, with its interval; p: Holm-corrected. Both "" where nothing was tested.
    """

    variant: str
    better: str
    worse: str
    metric: str
    paper: str
    source: str
    our_metric: str
    ours: str
    difference: str
    p: str
    verdict: Literal["holds", "does not hold", "undecided", "not tested: one seed", "undecided: both diverged"]


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
    gap = table.comparison(better, worse) if better.competes and worse.competes else None
    return Verdict(
        variant=better.variant.name,
        better=better.method,
        worse=worse.method,
        metric=mine.metric,
        paper=f"{mine.value:g} vs {theirs.value:g}",
        source=mine.source,
        our_metric=table.name(METRIC),
        ours=" vs ".join(table.text(row, METRIC) for row in (better, worse)),
        difference=table.gap(gap) if gap else "",
        p=p_text(gap.p) if gap else "",
        verdict=_judged(gap) if gap else _lost(better, worse),
    )


def _judged(gap: Comparison) -> str:
    """The verdict of the test on "`gap.one` is better than `gap.other`"."""
    if gap.certain is None:
        return "not tested: one seed"
    if not gap.certain:
        return "undecided"
    return "holds" if gap.difference.mean > 0 else "does not hold"


def _lost(better: Row, worse: Row) -> str:
    """The verdict where one or both diverged: such a row is worse than any other."""
    if better.competes:
        return "holds"
    return "does not hold" if worse.competes else "undecided: both diverged"


def _better(value: float, than: float, metric: str) -> bool:
    return value > than if metric in HIGHER else value < than
