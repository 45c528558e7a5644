import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.metrics import scores
from robuq_bench.metrics.scores import inception_score, kid


def naive_kid(x, y) -> float:
    """The definition, one pair at a time."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(s):
        return sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_is_its_definition(rng, monkeypatch):
    x, y = rng.normal(size=(23, 6)), rng.normal(0.3, 1.2, size=(31, 6))
    expected = naive_kid(x.tolist(), y.tolist())
    assert kid(x, y).value == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(scores, "BLOCK", 7)  # blocks that do not divide the set
    assert kid(x, y).value == pytest.approx(expected, rel=1e-12)


def test_kid_is_symmetric(rng):
    x, y = rng.normal(size=(40, 5)), rng.normal(1, 1, size=(60, 5))
    assert kid(x, y) == pytest.approx(kid(y, x), rel=1e-12)


def test_kid_is_unbiased_and_its_error_is_not_too_small():
    """Two sets of one distribution: the mean is 0 within its error, the claimed error √2 × the spread."""
    draws = map(np.random.default_rng, range(200))
    estimates = [kid(r.normal(size=(60, 5)), r.normal(size=(80, 5))) for r in draws]
    values, errors = np.array(estimates).T
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(len(values))
    assert 1.0 < errors.mean() / values.std(ddof=1) < 2.0


def test_kid_error_matches_the_spread_of_different_sets():
    draws = map(np.random.default_rng, range(200))
    estimates = [kid(r.normal(size=(60, 5)), r.normal(1, 1, size=(80, 5))) for r in draws]
    values, errors = np.array(estimates).T
    assert 0.8 < errors.mean() / values.std(ddof=1) < 1.25
    assert values.mean() > 10 * errors.mean() / np.sqrt(len(values))


@pytest.mark.parametrize("x", [np.zeros((1, 3)), np.zeros((5, 4)), np.full((5, 3), np.nan)])
def test_kid_refuses(x):
    with pytest.raises(BenchError, match="KID"):
        kid(x, np.ones((5, 3)))


def test_inception_score_of_certain_and_varied_images_is_the_number_of_classes():
    assert inception_score(np.tile(np.eye(7), (10, 1))) == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize("p", [np.full((50, 7), 1 / 7), np.tile(np.eye(7)[2], (50, 1))])
def test_inception_score_of_images_all_alike_is_one(p):
    assert inception_score(p) == pytest.approx(1, rel=1e-12)


def test_inception_score_takes_images_in_order():
    by_class = np.repeat(np.eye(4), 25, axis=0)
    assert inception_score(by_class, split=25) == pytest.approx(1)
    assert inception_score(by_class, split=100) == pytest.approx(4)


def test_inception_score_splits_as_adm_does(rng):
    """Every 5,000 images, and what is left at the end counts as much as a whole split."""
    p = rng.dirichlet(np.full(6, 0.2), 12_000)
    parts = [inception_score(part) for part in (p[:5000], p[5000:10_000], p[10_000:])]
    assert inception_score(p) == pytest.approx(np.mean(parts), rel=1e-12)
    assert inception_score(p[:4999]) == inception_score(p[:4999], split=4999)


@pytest.mark.parametrize("p", [np.full((5, 3), 0.5), np.array([[1.5, -0.5]]), np.full((2, 2), np.nan)])
def test_inception_score_refuses_what_is_no_probability(p):
    with pytest.raises(BenchError, match="Inception Score"):
        inception_score(p)


def test_inception_score_refuses_empty_splits():
    with pytest.raises(BenchError, match="splits of 0 images"):
        inception_score(np.eye(2), split=0)


def test_inception_score_refuses_no_images():
    with pytest.raises(BenchError, match="Inception Score: expected a matrix"):
        inception_score(np.empty((0, 7)))
