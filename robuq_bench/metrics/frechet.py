"""Fréchet distance of Gaussians in float64: |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½)  (Heusel et al. 2017)."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpstrf

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import Matrix, blocks

BLOCK = 4096  # rows centred at a time, so that the float64 copy stays small


@dataclass(frozen=True, eq=False)
class Moments:
    """mean float64 [d], covariance float64 [d, d] (divided by n - 1), n images (None: a file that does not say)."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int | None


class MomentsAccumulator:
    """Moments of rows that arrive in chunks, in constant memory.

    Chan, Golub & LeVeque's update: each chunk is centred before squaring, so a large mean cancels nothing.
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, rows: Matrix) -> None:
        """Take in `rows`, [N, d] of any float type. Raises BenchError for non-finite values."""
        if len(rows):
            for _, block in blocks(rows, BLOCK, "features"):
                self._add_block(block)

    def _add_block(self, rows: np.ndarray) -> None:
        if self.n == 0:
            self.mean = np.zeros(rows.shape[1])
            self.scatter = np.zeros((rows.shape[1], rows.shape[1]))
        total = self.n + len(rows)
        mean = rows.mean(0)
        shift = mean - self.mean
        centred = rows - mean
        self.scatter += centred.T @ centred
        self.scatter += np.outer(shift, shift) * (self.n * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.n = total

    def moments(self) -> Moments:
        """Raises BenchError when there are too few images for a covariance of full rank (n > d)."""
        dimensions = len(self.mean) if self.n else 0
        if self.n <= dimensions:
            raise BenchError(
                f"too few images for a Fréchet distance: {self.n} images for a {dimensions}-dimensional "
                f"covariance; need at least {dimensions + 1}"
            )
        return Moments(self.mean, self.scatter / (self.n - 1), self.n)


def moments(rows: Matrix) -> Moments:
    """Moments of `rows` [N, d]. Raises BenchError for non-finite values and for N <= d."""
    accumulator = MomentsAccumulator()
    accumulator.add(rows)
    return accumulator.moments()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with these moments; >= 0, in squared feature units.

    tr (C₁C₂)^½ is the sum of the singular values of R₁R₂ᵀ, where C = RᵀR. Unlike a square root of the product
    this stays real, needs no full rank, and errs by about 1e-16 · d · |C| even where C has null directions.
    Raises BenchError for unequal dimensions and non-finite moments.
    """
    if a.mean.shape != b.mean.shape:
        raise BenchError(f"Fréchet distance: {len(a.mean)} dimensions against {len(b.mean)}")
    if not all(np.isfinite(m.mean).all() and np.isfinite(m.covariance).all() for m in (a, b)):
        raise BenchError("Fréchet distance: the moments are not finite")
    shift = a.mean - b.mean
    overlap = np.linalg.svd(_factor(a.covariance) @ _factor(b.covariance).T, compute_uv=False).sum()
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(distance), 0.0)  # rounding may leave -1e-13 for equal sets


def _factor(covariance: np.ndarray) -> np.ndarray:
    """R [rank, d] with RᵀR = C, by Cholesky with pivoting: C need only be positive semi-definite."""
    upper, pivots, rank, _ = dpstrf(covariance)
    factor = np.empty((rank, len(covariance)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    return factor
