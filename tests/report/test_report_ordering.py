"""Orders of rows, theirs and ours: Kendall's tau by hand, and the pairs that stand the other way round."""

from functools import partial

import pytest

from robuq_bench.config.recipe import PaperNumber
from robuq_bench.report.ordering import describe, orderings
from robuq_bench.report.rows import Row


@pytest.fixture
def quoted(scored):
    """`quoted("recipe/variant", ours, theirs)`: a row with a number from the literature."""
    return partial(_quoted, scored)


def _quoted(
    scored, key: str, ours: float, theirs: float, metric: str = "FID", setting: str = "s, cfg 4", **more
) -> Row:
    variant = key.rpartition("/")[2]
    number = PaperNumber(variant=variant, metric=metric, value=theirs, setting=setting, source="A figure, digitised")
    given = scored(key, ours, **more)
    method = given.variant.method.model_copy(update={"paper": (number,)})
    return given.model_copy(update={"variant": given.variant.model_copy(update={"method": method})})


def test_the_same_order_and_one_pair_turned(quoted):
    """Of 3 pairs 2 agree: tau = (2 - 1) / 3."""
    same = [quoted("a/W1.58A2", 1.0, 10.0), quoted("b/W1.58A2", 2.0, 20.0), quoted("c/W1.58A2", 3.0, 30.0)]
    (found,) = orderings(same, ("Lite0",))
    assert (found.tau, found.discords, found.ours) == (1.0, (), "FD-Lite0")
    turned = [*same[:2], quoted("c/W1.58A2", 1.5, 30.0)]
    (found,) = orderings(turned, ("Lite0",))
    assert found.tau == pytest.approx(1 / 3)
    (pair,) = found.discords
    assert (pair.better, pair.worse, pair.theirs, pair.ours) == ("b W1.58A2", "c W1.58A2", (20.0, 30.0), (2.0, 1.5))
    assert "1 of 3 pairs" in describe(found)


def test_of_inception_scores_the_higher_is_better(quoted):
    given = [quoted(f"{name}/W1.58A2", ours, theirs, "IS") for name, ours, theirs in
             (("a", 1.0, 300.0), ("b", 2.0, 200.0), ("c", 3.0, 100.0))]  # fmt: skip
    assert next(iter(orderings(given, ("Lite0",)))).tau == 1.0


def test_a_source_with_fid_is_judged_by_it(quoted):
    given = [quoted(f"{name}/W1.58A2", 1.0 + i, 9.0 + i) for i, name in enumerate("abc")]
    given += [quoted(f"{name}/W1.58A2", 1.0 + i, 300.0 + i, "IS") for i, name in enumerate("def")]
    assert [found.metric for found in orderings(given, ("Lite0",))] == ["FID"]


def test_sources_with_budgets_are_compared_at_one_bit_setting(quoted):
    setting = "cfg 1.5, 20k QAT steps"
    given = [quoted(f"{name}/W1.58A{bits}", 1.0 + i, 2.0 + i, setting=setting)
             for i, (name, bits) in enumerate([("a", 2), ("b", 2), ("c", 2), ("d", 4), ("e", 4)])]  # fmt: skip
    (found,) = orderings(given, ("Lite0",))
    assert (found.variant, found.rows) == ("W1.58A2", 3)


def test_rows_that_diverged_have_other_budgets_or_no_score_are_left_out(quoted):
    given = [quoted("a/W1.58A2", 1.0, 10.0), quoted("b/W1.58A2", 2.0, 20.0), quoted("c/W1.58A2", 3.0, 30.0)]
    odd = [quoted("d/W1.58A2", 0.5, 40.0, diverged=True), quoted("a,schedule.steps=3/W1.58A2", 0.5, 10.0)]
    (found,) = orderings(given + odd, ("Lite0",))
    assert (found.rows, found.tau) == (3, 1.0)
    assert not list(orderings(given[:2], ("Lite0",))), "two rows are no order"
    assert not list(orderings(given, ("Inception",)))
