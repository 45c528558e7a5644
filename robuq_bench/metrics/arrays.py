"""One check shared by all scores."""

import numpy as np

from robuq_bench.errors import BenchError


def float64_matrix(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as float64 [N, d]. Raises BenchError unless they are two-dimensional, not empty and finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise BenchError(f"{what}: expected a matrix [images, dimensions], got shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise BenchError(f"{what}: not finite; the images come from a diverged model or are damaged")
    return values
