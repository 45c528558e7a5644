"""The dynamic programme: equal to brute force and to a MILP solver, exact in cost, fast, and plain about its limits."""

import time
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from robuq_bench.allocate import dp
from robuq_bench.allocate.dp import front

SLOW = 0.05  # seconds of processor time


@st.composite
def instances(draw, layers: int, widths: int, costs: st.SearchStrategy, losses: st.SearchStrategy):
    """(cost, loss), nested lists [layers][widths]; losses rise and fall as they like."""
    shape = draw(st.integers(1, layers)), draw(st.integers(1, widths))
    return [[[draw(values) for _ in range(shape[1])] for _ in range(shape[0])] for values in (costs, losses)]


def brute_force(cost: list[list], loss: list[list]) -> dict:
    """The undominated (cost, loss) totals of every allocation, in the exact arithmetic of the entries."""
    best = {}
    for choice in product(*(range(len(row)) for row in cost)):
        total, lost = (sum(row[i] for row, i in zip(rows, choice, strict=True)) for rows in (cost, loss))
        best[total] = min(lost, best.get(total, lost))
    kept = {}
    for total in sorted(best):
        if not kept or best[total] < min(kept.values()):
            kept[total] = best[total]
    return kept


def solve(cost: np.ndarray, loss: np.ndarray, budget: float) -> float:
    """The least total loss within the budget, by HiGHS; losses are whole numbers."""
    layers, widths = cost.shape
    one_each = np.kron(np.eye(layers), np.ones(widths))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(cost.ravel()[None], -np.inf, budget)]
    found = milp(
        loss.ravel(),
        constraints=constraints,
        integrality=np.ones(cost.size),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.success
    return round(found.fun)


def sums(values: np.ndarray, choice: np.ndarray) -> float:
    return float(values[np.arange(len(choice)), choice].sum())


@given(instances(4, 4, st.integers(0, 12), st.integers(-9, 9)))
def test_front_equals_brute_force(case):
    found = front(*map(np.array, case))
    assert dict(zip(found.cost, found.loss, strict=True)) == brute_force(*case)


@given(instances(4, 3, st.floats(1e-3, 1e3).map(Fraction), st.integers(-9, 9)))
def test_front_of_real_costs_equals_brute_force_in_rationals(case):
    """To 2^-52 of the largest total for each layer; points closer than that may be one."""
    cost, loss = case
    reals = np.array(cost, dtype=float)
    expected, found = brute_force(cost, loss), front(reals, np.array(loss))
    resolution = len(cost) * 2.0**-52 * 2 * reals.max(axis=1).sum()
    for total, lost in expected.items():
        assert found.loss[found.best(float(total) + resolution)] <= lost
    for total, lost in zip(found.cost, found.loss, strict=True):
        assert any(abs(float(other) - total) <= resolution and lost == expected[other] for other in expected)


@given(seed=st.integers(0, 10**6), layers=st.integers(1, 30), widths=st.integers(1, 5), real=st.booleans())
def test_equals_milp(seed, layers, widths, real):
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 20, (layers, widths)) * (0.37 if real else 1.0)
    loss = rng.integers(-500, 500, (layers, widths)).astype(float)
    found = front(cost, loss)
    budget = found.cost[0] + rng.random() * np.ptp(found.cost) * 1.1
    point = found.best(budget)
    assert found.loss[point] == solve(cost, loss, budget)
    assert sums(loss, found.choice(point)) == found.loss[point]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_pareto_points_are_independent_solves(seed):
    rng = np.random.default_rng(seed)
    cost = np.array([3, 1, 4, 4])[rng.integers(0, 4, 12), None] * np.arange(1, 5)
    loss = np.sort(rng.integers(0, 1000, cost.shape), axis=1)[:, ::-1].astype(float)
    found = front(cost, loss)
    assert (np.diff(found.cost) > 0).all() and (np.diff(found.loss) < 0).all()
    for point in rng.choice(len(found.cost), min(4, len(found.cost)), replace=False):
        assert solve(cost, loss, found.cost[point]) == found.loss[point]
        if point:
            assert solve(cost, loss, found.cost[point] - 1) == found.loss[point - 1]


@given(seed=st.integers(0, 10**6), real=st.booleans())
def test_every_point_is_what_its_choice_adds_up_to(seed, real):
    rng = np.random.default_rng(seed)
    cost = np.cumsum(rng.random((9, 4)) if real else rng.integers(0, 5, (9, 4)), axis=1)
    loss = rng.normal(size=cost.shape)
    found = front(cost, loss)
    for point in range(len(found.cost)):
        choice = found.choice(point)
        assert sums(cost, choice) == pytest.approx(found.cost[point], rel=1e-14, abs=0)
        assert sums(loss, choice) == pytest.approx(found.loss[point], abs=1e-12)
        assert found.best(found.cost[point]) == point


@given(seed=st.integers(0, 10**6))
def test_the_order_of_layers_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    cost, loss = rng.random((8, 3)), rng.integers(-99, 99, (8, 3))
    order = rng.permutation(8)
    one, other = front(cost, loss), front(cost[order], loss[order])
    np.testing.assert_array_equal(one.cost, other.cost)  # real costs, and yet bit for bit
    np.testing.assert_array_equal(one.loss, other.loss)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), layers=st.integers(8, 24), spread=st.sampled_from([0.0, 0.01, 1.0]))
def test_the_coarse_look_rules_out_no_point_of_the_front(seed, layers, spread):
    """Fronts of hundreds of points, equal costs and equal losses among them, against plain sorting."""
    rng = np.random.default_rng(seed)
    cost = np.array([3, 1, 4, 4])[rng.integers(0, 4, layers), None] * np.arange(1, 5) * 1000
    cost = cost + np.round(spread * rng.normal(0, 100, cost.shape))
    loss = rng.integers(0, 60, cost.shape)
    total, lost = np.zeros(1), np.zeros(1)
    for own, rise in zip(cost, loss, strict=True):
        total, lost = np.add.outer(own, total).ravel(), np.add.outer(rise, lost).ravel()
        order = np.lexsort((lost, total))
        total, lost = total[order], lost[order]
        kept = np.append(True, lost[1:] < np.minimum.accumulate(lost)[:-1])
        total, lost = total[kept], lost[kept]
    found = front(cost, loss)
    np.testing.assert_array_equal(found.cost, total)
    np.testing.assert_array_equal(found.loss, lost)


def test_equal_totals_of_real_costs_are_one_point():
    """Twelve layers of the same three irrational costs in turning order: 91 multisets, and so 91 totals, not more."""
    cost = np.sqrt([2.0, 3.0, 5.0])[(np.arange(12)[:, None] + np.arange(3)) % 3]
    assert len(front(cost, -cost).cost) == 91


def test_more_bits_are_not_taken_where_they_hurt():
    found = front([[1, 2, 3]] * 2, [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
    assert list(found.choice(found.best(100))) == [1, 0]
    assert list(found.cost) == [2, 3] and list(found.loss) == [0.5, -1.0]


def test_a_budget_below_the_least_is_refused(refused):
    found = front([[3, 6], [1, 2]], [[1.0, 0.0], [1.0, 0.0]])
    assert found.best(4) == 0
    refused(lambda: found.best(3.9), "budget 3.9", "least achievable is 4")


@pytest.mark.parametrize(
    ("cost", "loss", "word"),
    [
        ([[1, 2]], [[1.0]], "[1, 2]"),
        ([], [], "not empty"),
        ([[1, np.inf]], [[1.0, 0.0]], "not finite"),
        ([[1, 2]], [[np.nan, 0.0]], "not finite"),
    ],
)
def test_bad_problems_are_refused(refused, cost, loss, word):
    refused(lambda: front(cost, loss), word)


def test_exponentially_many_points_are_refused(refused, monkeypatch):
    """Losses that are the costs with the other sign: no total dominates another."""
    monkeypatch.setattr(dp, "LIMIT", 2**10)
    cost = np.stack([np.zeros(12), 2.0 ** np.arange(12)], axis=1)
    assert len(front(cost[:10], -cost[:10]).cost) == 2**10
    refused(lambda: front(cost, -cost), "1024", "round the costs")


@pytest.mark.parametrize(
    "costs",
    [
        pytest.param(lambda rng, macs: np.tile(macs, (28, 1)), id="bits x MACs"),
        pytest.param(lambda rng, macs: np.tile(macs * rng.normal(30, 2, (4, 4)), (28, 1)), id="16 measured times"),
        pytest.param(lambda rng, macs: np.tile(macs, (28, 1)) * rng.normal(30, 2, (112, 1)), id="112 unlike layers"),
        pytest.param(lambda rng, macs: np.tile(macs, (28, 1)) * rng.normal(30, 2, (112, 4)), id="448 unlike costs"),
    ],
)
def test_112_layers_with_4_widths_take_less_than_50_ms(costs):
    """DiT-XL/2: 28 blocks of four layer types."""
    rng = np.random.default_rng(0)
    cost = costs(rng, np.array([[3], [1], [4], [4]]) * np.arange(1, 5))
    spread = np.exp(rng.normal(size=(112, 1)))
    loss = spread * np.array([0.36, 0.12, 0.037, 0]) * np.exp(rng.normal(0, 0.15, (112, 4)))
    seconds = []
    for _ in range(5):  # processor time, and the least of five: other processes run beside this one
        start = time.process_time()
        found = front(cost, loss)
        found.choice(found.best(cost[:, 1].sum()))
        seconds.append(time.process_time() - start)
    assert min(seconds) < SLOW
