"""Statistics of tokens against distributions whose figures are known, and against SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robuq_bench.measure.inspect_activations import control
from robuq_bench.measure.inspect_records import BITS, PROBABILITIES
from robuq_bench.measure.inspect_statistics import Histogram, Totals, floors, token_statistics, view


def draw(sampler, tokens: int = 200, width: int = 4096) -> torch.Tensor:
    return torch.from_numpy(sampler(np.random.default_rng(0), (tokens, width)))


def laplace(random, shape):
    return random.laplace(size=shape)


def summary(x: torch.Tensor):
    totals = Totals()
    totals.add(x)
    return totals.summary()


def test_floors_are_the_published_errors():
    """paper-facts 1.5; Lloyd-Max equals uniform where both have one level a side."""
    found = floors()
    assert found.uniform == pytest.approx((0.36338, 0.11885, 0.03744, 0.01154), abs=6e-6)
    assert found.lloyd_max == pytest.approx((0.36338, 0.11748, 0.03455, 0.00950), abs=6e-6)


@pytest.mark.parametrize("width", [128, 1152])
def test_normal_tokens_have_no_shape_and_the_least_error(width):
    found = control(width, tokens=4096)
    overall = found.overall
    spread = (24 / (width * overall.tokens)) ** 0.5  # standard error of the mean kurtosis
    assert abs(overall.kurtosis) < 5 * spread and abs(overall.pooled_kurtosis) < 0.03
    assert abs(overall.skewness) < 0.01 and abs(overall.pooled_skewness) < 0.01
    assert overall.rejected == pytest.approx(0.047, abs=0.015)
    assert found.wasserstein < 0.01
    for error, floor in zip(overall.gaussian, floors().uniform, strict=True):
        assert error / floor == pytest.approx(1, abs=0.01)
    assert found.quantiles == pytest.approx(stats.norm.ppf(PROBABILITIES), abs=0.05)


def test_normal_tokens_under_min_max():
    """paper-facts 1.5, width 1152: 0.408, 0.0735, 0.0160 at 2, 3, 4 bits."""
    assert control(1152, tokens=4096).overall.minmax[1:] == pytest.approx((0.408, 0.0735, 0.0160), rel=0.02)


def test_laplace_tokens_have_excess_kurtosis_three():
    found = summary(draw(laplace))
    assert found.pooled_kurtosis == pytest.approx(3, abs=0.1)
    assert found.kurtosis == pytest.approx(3, abs=0.1)
    assert found.rejected == 1
    assert found.gaussian[1] > 1.3 * floors().uniform[1]


def test_exponential_tokens_have_skewness_two():
    found = summary(draw(lambda random, shape: random.exponential(size=shape)))
    assert found.skewness == pytest.approx(2, abs=0.05)
    assert found.pooled_skewness == pytest.approx(2, abs=0.05)
    assert found.kurtosis == pytest.approx(6, abs=0.4)
    assert found.pooled_kurtosis == pytest.approx(6, abs=0.4)


def test_scale_per_token_hides_what_pooling_shows():
    """Normal tokens of two sizes, one three times the other: E s^4 / (E s^2)^2 = 41 / 25."""
    x = draw(lambda random, shape: random.normal(size=shape))
    x[::2] *= 3
    found = summary(x)
    assert abs(found.kurtosis) < 0.01
    assert found.pooled_kurtosis == pytest.approx(3 * (41 / 25) - 3, abs=0.05)


def test_a_token_of_two_values_by_hand():
    """+-1: kurtosis -2; one bit is exact; two bits put it at half a step of 0.99569 sigma, sigma = sqrt(pi / 2)."""
    n = 4096
    found = token_statistics(torch.tensor([1.0, -1.0]).repeat(n // 2)[None])
    assert found["kurtosis"].item() == pytest.approx(-2, abs=0.01)
    assert found["outlier"].item() == pytest.approx(1)
    assert found["minmax 1"].item() == 0
    assert found["gaussian 1"].item() == pytest.approx(0, abs=1e-12)
    assert found["gaussian 2"].item() == pytest.approx((1 - 0.9956867 * (np.pi / 2) ** 0.5 / 2) ** 2, rel=1e-6)


def test_each_statistic_equals_scipys():
    x = draw(laplace, tokens=64, width=96)
    found = token_statistics(x.float())
    x = x.float().double().numpy()
    assert found["kurtosis"].numpy() == pytest.approx(stats.kurtosis(x, axis=1, bias=False))
    assert found["skewness"].numpy() == pytest.approx(stats.skew(x, axis=1, bias=False))
    assert found["rejected"].numpy().tolist() == (stats.jarque_bera(x, axis=1).pvalue < 0.05).tolist()
    assert 0 < found["rejected"].mean() < 1
    totals = summary(torch.from_numpy(x))
    assert totals.pooled_kurtosis == pytest.approx(stats.kurtosis(x, axis=None))
    assert totals.pooled_skewness == pytest.approx(stats.skew(x, axis=None))


@given(factor=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_statistics_do_not_depend_on_scale(factor, sign):
    x = draw(laplace, tokens=4, width=64)
    before, after = token_statistics(x), token_statistics(sign * factor * x)
    for name in before:
        expected = sign * before[name] if name == "skewness" else before[name]
        assert after[name].numpy() == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9)


def test_pieces_add_up():
    x = draw(laplace, tokens=60, width=32)
    parts, whole = [Totals(), Totals()], Totals()
    parts[0].add(x[:7])
    parts[0].add(x[7:20])
    parts[1].add(x[20:])
    whole.add(x)
    found, expected = (t.summary().model_dump() for t in (parts[0] + parts[1], whole))
    assert found.pop("tokens") == expected.pop("tokens") == 60
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    histogram, other = Histogram(32), Histogram(32)
    histogram.add(x)
    other.add(x[:30])
    other.add(x[30:])
    assert histogram.counts.equal(other.counts)
    seen = view(parts, histogram)
    assert [one.tokens for one in seen.by_time] == [20, 40] and seen.overall.tokens == 60


def test_quantiles_and_distance_of_a_skewed_distribution():
    x = draw(lambda random, shape: random.exponential(size=shape) - 0.3)
    histogram = Histogram(x.shape[1])
    histogram.add(x)
    z = (x / x.square().mean(-1, keepdim=True).sqrt()).numpy().ravel()
    assert histogram.quantiles() == pytest.approx(np.quantile(z, PROBABILITIES), abs=0.01)
    normal = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    assert histogram.wasserstein() == pytest.approx(stats.wasserstein_distance(z, normal), abs=2e-3)


def test_the_histogram_holds_the_most_extreme_token():
    histogram = Histogram(10)
    histogram.add(torch.eye(10))
    histogram.add(-torch.eye(10))
    assert histogram.counts.sum() == 200
    edge = 10**0.5
    ends = histogram.quantiles()
    assert ends[0] == pytest.approx(-edge, abs=0.02) and ends[-1] == pytest.approx(edge, abs=0.02)


def test_a_token_without_shape_is_refused(refused):
    refused(lambda: token_statistics(torch.ones(2, 64)), "values are all equal")


def test_there_is_an_error_for_every_width():
    found = token_statistics(draw(laplace, tokens=2, width=64))
    assert {f"{name} {bits}" for name in ("gaussian", "minmax") for bits in BITS} <= found.keys()
