"""Uncertainty over seeds. (Resampling images gives none for a Fréchet distance: duplicates raise it.)"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from robuq_bench.errors import BenchError


class Interval(NamedTuple):
    """mean ± half_width over n runs; half_width is None for a single run: one number has no spread."""

    mean: float
    half_width: float | None
    n: int


def t_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent runs, in the unit of `samples`.

    Raises BenchError for no sample and for non-finite ones.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise BenchError(f"interval: needs one or more finite numbers, got {list(samples)}")
    if len(values) == 1:
        return Interval(float(values[0]), None, 1)
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / math.sqrt(len(values))), len(values))
