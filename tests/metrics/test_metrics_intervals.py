import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.metrics.intervals import t_interval


def test_textbook_case():
    """Mean 2, standard deviation 1, n 3: half width 4.3027 / √3."""
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302653 / np.sqrt(3), 3), rel=1e-6)


def test_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(5, 2, size=(4000, 3))
    hits = [abs(i.mean - 5) <= i.half_width for i in (t_interval(d, 0.9) for d in draws)]
    assert np.mean(hits) == pytest.approx(0.9, abs=0.02)


def test_one_run_has_no_spread():
    assert t_interval([4.2]) == (4.2, None, 1)


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")]])
def test_refuses(samples):
    with pytest.raises(BenchError, match="finite numbers"):
        t_interval(samples)
