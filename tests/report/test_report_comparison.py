"""Differences between rows: known answers by hand and by an independent formula, and properties of the correction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robuq_bench.config.recipe import Recipe, Variant
from robuq_bench.report.comparison import Difference, compare_pairs, holm, p_text, paired, rivals
from robuq_bench.report.rows import Figure, Row, Run

T_975 = {1: 12.7062047, 2: 4.3026527}  # Student's 97.5 % quantile by degrees of freedom


def test_paired_by_hand():
    """Gaps 1, 2, 6: mean 3, standard deviation sqrt 7, t = 3 / (sqrt 7 / sqrt 3) = 1.963961; with 2 degrees of
    freedom p = 1 - t / sqrt(2 + t²) = 0.188467."""
    found = paired([11.0, 22.0, 36.0], [10.0, 20.0, 30.0])
    assert found.mean == pytest.approx(3)
    assert found.half_width == pytest.approx(T_975[2] * math.sqrt(7 / 3), rel=1e-7)
    t = 3 / math.sqrt(7 / 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-9)


def test_two_pairs_follow_the_cauchy_distribution():
    """One degree of freedom: p = 1 - 2 arctan(t) / pi; gaps 1 and 3 have t = 2."""
    found = paired([1.0, 3.0], [0.0, 0.0])
    assert found.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, rel=1e-9)
    assert found.half_width == pytest.approx(T_975[1], rel=1e-7)


def test_pairs_find_what_means_alone_hide():
    """A gap of 1 under a spread of 10 between seeds: the paired test sees it, intervals of the means overlap."""
    one, other = [0.0, 10.0, 20.0], [1.0, 11.1, 20.9]
    assert paired(other, one).p < 0.05 < stats.ttest_ind(other, one).pvalue


def test_one_pair_cannot_be_tested():
    assert paired([3.0], [1.0]) == Difference(mean=2.0, half_width=None, p=None)


def test_gaps_without_spread():
    found = paired([3.1, 4.2], [1.0, 2.1])  # equal but for rounding
    assert (found.mean, found.half_width, found.p) == (pytest.approx(2.1), 0.0, 0.0)
    assert paired([1.0, 2.0], [1.0, 2.0]) == Difference(mean=0.0, half_width=0.0, p=1.0)


@given(st.lists(st.tuples(st.floats(-99, 99), st.floats(-99, 99)), min_size=2, max_size=6))
def test_interval_and_p_agree_and_order_turns_the_sign(pairs):
    first, second = (list(values) for values in zip(*pairs, strict=True))
    if np.ptp(np.subtract(first, second)) < 1e-6:
        return
    one, other = paired(first, second), paired(second, first)
    assert one.mean == -other.mean and one.p == pytest.approx(other.p)
    assert (abs(one.mean) > one.half_width) == (one.p < 0.05) or one.p == pytest.approx(0.05)


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 (not below the one before), 0.6 x 1; the untested one does not count."""
    assert holm([0.03, 0.01, None, 0.6, 0.02]) == pytest.approx([0.06, 0.04, None, 0.6, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    corrected = holm(values)
    for p, own in zip(values, corrected, strict=True):
        assert p <= own <= min(1.0, len(values) * p) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(values, level):
    """The textbook procedure: compare the k-th smallest with level / (m - k + 1), stop at the first that fails."""
    rejected = set()
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        if values[place] * (len(values) - rank) > level:
            break
        rejected.add(int(place))
    assert {place for place, p in enumerate(holm(values)) if p <= level} == rejected


def row(
    name: str, *distances: float, training: str = "qat", variant: str = "W1.58A2", status: str = "ok", seeds=(0, 1, 2)
) -> Row:
    weight = {"format": "ternary", "granularity": "channel", "scale": "absmean"} if training == "qat" else None
    method = Recipe(title=name, citation="c", training=training, weight=weight, variants={}, assumptions=())
    figure = Figure(label="simulated", mean=sum(distances) / max(1, len(distances)), half_width=None, values=distances)
    lost = dict.fromkeys(("size", "scores", "held_out_loss", "latency"))
    runs = [Run(seed=seed, status="ok", reason="", packed="h", bits={}, provenance={}, **lost) for seed in seeds]
    return Row(
        variant=Variant(recipe=name, name=variant, weight_bits=1.58, activation_bits=2, method=method),
        status=status, reason="", runs=runs[: len(distances)], figures={"FD": figure},
    )  # fmt: skip


def test_every_two_rivals_once_and_corrected_together():
    rows = [row("a", 1.0, 1.1, 1.2), row("b", 2.0, 2.2, 2.1), row("c", 2.0, 2.1, 2.6)]
    found = compare_pairs(rivals(rows))
    assert [(c.one, c.other) for c in found] == [(f"{x}/W1.58A2", f"{y}/W1.58A2") for x, y in ("ab", "ac", "bc")]
    plain = [stats.ttest_rel(y.figures["FD"].values, x.figures["FD"].values).pvalue for x, y in rivals(rows)]
    assert [c.p for c in found] == pytest.approx(holm(plain))
    assert found[0].difference.mean == pytest.approx(1.0), "positive where the first is better"
    assert found[0].seen_from("b/W1.58A2").difference.mean == pytest.approx(-1.0)
    assert found[0].seen_from("a/W1.58A2") == found[0]


def test_rivals_share_a_bit_setting_and_came_through():
    one, other = row("a", 1.0), row("b", 2.0)
    full, four, lost = row("full", 1.0, training="none"), row("c", 1.0, variant="W1.58A4"), row("d", status="diverged")
    assert list(rivals([lost, full, one, four, other])) == [(one, other)]


def test_one_seed_is_not_certain_of_anything():
    (found,) = compare_pairs([(row("a", 1.0), row("b", 2.0))])
    assert (found.p, found.certain, found.difference.mean) == (None, None, 1.0)


def test_pairs_are_of_the_seeds_that_both_have():
    one, other = row("a", 1.0, 2.0, 4.0, seeds=(0, 1, 2)), row("b", 9.0, 4.0, 7.0, seeds=(5, 2, 1))
    (found,) = compare_pairs([(one, other)])
    assert found.difference == paired([7.0, 4.0], [2.0, 4.0])
    (alone,) = compare_pairs([(one, row("b", 9.0, seeds=(5,)))])
    assert (alone.difference.mean, alone.p) == (pytest.approx(9.0 - 7 / 3), None)


@pytest.mark.parametrize(
    ("p", "text"), [(None, ""), (0.04999, "p = 0.05"), (0.0132, "p = 0.013"), (0.0009, "p < 0.001"), (1.0, "p = 1")]
)
def test_p_as_text(p, text):
    assert p_text(p) == text
