import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from robuq_bench.errors import BenchError
from robuq_bench.metrics.frechet import Moments, MomentsAccumulator, frechet_distance, moments


def gaussian(rng, d: int, n: int = 1000) -> Moments:
    factor = rng.normal(size=(d, 2 * d))
    return Moments(rng.normal(size=d), factor @ factor.T / d, n)


def test_commuting_covariances_have_a_closed_form(rng):
    a, b = rng.uniform(0, 3, 20), rng.uniform(0, 3, 20)
    mean_a, mean_b = rng.normal(size=(2, 20))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(Moments(mean_a, np.diag(a), 100), Moments(mean_b, np.diag(b), 100))
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 17, 128])
def test_agrees_with_the_matrix_square_root(rng, d):
    a, b = gaussian(rng, d), gaussian(rng, d)
    root = sqrtm(a.covariance @ b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_at_distance_zero(rng):
    m = moments(rng.normal(size=(300, 64)) * 10)
    assert frechet_distance(m, m) == pytest.approx(0, abs=1e-9)


def test_null_directions_cost_no_precision(rng):
    """Dead and repeated features: the square root of the product would give 1e-8 per direction, or NaN."""
    rows = np.repeat(rng.normal(size=(200, 10)), 4, axis=1)
    rows[:, :5] = 0
    m, shifted = moments(rows), moments(rows + 1.0)
    assert np.linalg.matrix_rank(m.covariance) < 11
    assert frechet_distance(m, m) == pytest.approx(0, abs=1e-11)
    assert frechet_distance(m, shifted) == pytest.approx(40, rel=1e-12)


def test_disjoint_supports(rng):
    """Covariances that share no direction: the cross term is 0, the worst case for a square root."""
    a, b = np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0])
    assert frechet_distance(Moments(np.zeros(4), a, 9), Moments(np.zeros(4), b, 9)) == pytest.approx(10, rel=1e-12)


def test_moments_are_those_of_numpy_in_float64(rng):
    rows = rng.normal(size=(100, 7)).astype(np.float32)
    m = moments(rows)
    assert m.mean.dtype == m.covariance.dtype == np.float64
    np.testing.assert_allclose(m.mean, rows.astype(np.float64).mean(0), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(m.covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-12, atol=1e-14)


def test_a_large_mean_cancels_nothing(rng):
    """The sum-of-squares formula would lose 10 digits here, and float32 all of them."""
    rows = rng.normal(size=(5000, 3))
    got = moments(rows + 1e5)
    np.testing.assert_allclose(got.covariance, moments(rows).covariance, rtol=1e-9, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 1000))
def test_streaming_equals_one_shot(cuts, seed):
    rows = np.random.default_rng(seed).normal(3, 2, size=(200, 5))
    accumulator = MomentsAccumulator()
    for chunk in np.split(rows, sorted(cuts)):
        accumulator.add(chunk)
    streamed, whole = accumulator.moments(), moments(rows)
    assert streamed.n == whole.n == 200
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), d=st.integers(1, 12), scale=st.floats(0.01, 100))
def test_symmetric_and_not_negative(seed, d, scale):
    rng = np.random.default_rng(seed)
    a, b = gaussian(rng, d), gaussian(rng, d)
    b = Moments(b.mean, b.covariance * scale, b.n)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) >= 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.lists(st.floats(-50, 50), min_size=4, max_size=4))
def test_a_translation_costs_its_squared_length(seed, shift):
    rows = np.random.default_rng(seed).normal(size=(40, 4))
    expected = float(np.square(shift).sum())
    assert frechet_distance(moments(rows), moments(rows + shift)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 8])
def test_too_few_images(rng, n):
    message = f"{n} images for a 8-dimensional covariance; need at least 9"
    with pytest.raises(BenchError, match=message):
        moments(rng.normal(size=(n, 8)))
    assert moments(rng.normal(size=(9, 8))).n == 9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(rng, bad):
    rows = rng.normal(size=(20, 3))
    good = moments(rows)
    rows[4, 1] = bad
    with pytest.raises(BenchError, match="not finite"):
        moments(rows)
    with pytest.raises(BenchError, match="not finite"):
        frechet_distance(good, Moments(np.full(3, bad), good.covariance, 20))


def test_unequal_dimensions(rng):
    with pytest.raises(BenchError, match="3 dimensions against 4"):
        frechet_distance(gaussian(rng, 3), gaussian(rng, 4))
