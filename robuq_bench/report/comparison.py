"""Differences between rows, tested: is a gap more than what another training seed would change?

A seed fixes the batches, their noise and times, and the random signs; every run starts from one full-precision
checkpoint. Runs of one seed have met the same data in the same order, so that the runs of two rows form pairs:
two-sided paired t-test over the seeds that both have (Welch's test would take them for independent).
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from robuq_bench.config.base import Model
from robuq_bench.report.rows import Row

METRIC = "FD"  # judges rows whatever else is printed: on small data the Inception Score ranks noise above shape
LEVEL = 0.05
CONFIDENCE = 0.95
SPREAD = 1e-12  # of the mean: gaps closer than that are equal but for rounding


class Difference(Model):
    """Mean difference over pairs of runs; half_width of its 95 % interval and two-sided p of "no difference".

    Both are null below two pairs: nothing can be tested then.
    """

    mean: float
    half_width: float | None = None
    p: float | None = None


class Comparison(Model):
    """`METRIC` of the row `other` minus that of the row `one`: positive where `one` is better.

    p: of the difference, after Holm's correction for all comparisons made with it; null when nothing could be tested.
    """

    one: str
    other: str
    difference: Difference
    p: float | None

    @property
    def certain(self) -> bool | None:
        """Whether the difference is beyond chance (p below `LEVEL`); None when it could not be tested."""
        return None if self.p is None else self.p < LEVEL

    def seen_from(self, key: str) -> "Comparison":
        """The same comparison with the row `key` as `one`."""
        if key == self.one:
            return self
        turned = self.difference.model_copy(update={"mean": -self.difference.mean})
        return Comparison(one=self.other, other=self.one, difference=turned, p=self.p)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """`first` minus `second`, pair by pair: Student's paired t-test (scipy.stats.ttest_rel)."""
    gaps = np.subtract(first, second)
    mean = float(gaps.mean())
    if len(gaps) == 1:
        return Difference(mean=mean)
    if np.ptp(gaps) <= SPREAD * abs(mean):  # no spread at all, where t is not defined
        return Difference(mean=mean, half_width=0.0, p=float(mean == 0))
    test = stats.ttest_rel(first, second)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(mean=mean, half_width=float(high - low) / 2, p=float(test.pvalue))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number m (Holm 1979): the k-th smallest times m - k + 1, never falling, at most 1.

    None, a comparison that was not tested, stays None and does not count.
    """
    corrected: list[float | None] = [None] * len(values)
    tested = sorted((p, place) for place, p in enumerate(values) if p is not None)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[place] = highest
    return corrected


def compare_pairs(pairs: Iterable[tuple[Row, Row]]) -> tuple[Comparison, ...]:
    """The comparison of each pair of rows that came through, corrected as one family."""
    pairs = list(pairs)
    gaps = [_between(*pair) for pair in pairs]
    return tuple(
        Comparison(one=one.key, other=other.key, difference=gap, p=p)
        for (one, other), gap, p in zip(pairs, gaps, holm([gap.p for gap in gaps]), strict=True)
    )


def _between(one: Row, other: Row) -> Difference:
    first, second = _by_seed(one), _by_seed(other)
    if not (shared := [seed for seed in first if seed in second]):
        return Difference(mean=other.figures[METRIC].mean - one.figures[METRIC].mean)
    return paired([second[seed] for seed in shared], [first[seed] for seed in shared])


def _by_seed(row: Row) -> dict[int, float]:
    return dict(zip((run.seed for run in row.runs), row.figures[METRIC].values, strict=True))


def rivals(rows: Iterable[Row]) -> Iterable[tuple[Row, Row]]:
    """Every two rows that compete at one bit setting, in table order."""
    competing = [row for row in rows if row.competes]
    return (pair for pair in combinations(competing, 2) if pair[0].variant.name == pair[1].variant.name)


def p_text(p: float | None) -> str:
    """ "p = 0.013" or "p < 0.001"; "" where nothing was tested."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def explanation(metric: str, count: int) -> str:
    """How the differences beside it were tested: the footnote of a table with `count` comparisons."""
    return (
        f"Differences in {metric} are tested over training seeds: two-sided t-test, paired by seed (runs of one seed "
        f"met the same batches and noise); p after Holm's correction for {count} comparison{'s' if count > 1 else ''}; "
        f"beyond chance: p < {LEVEL:g}. The ± of a difference is the half-width of its own 95 % interval, not "
        "corrected. All rows start from one full-precision checkpoint, whose own spread is not in these figures."
    )
