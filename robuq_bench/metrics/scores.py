"""Kernel Inception Distance and Inception Score, in float64 and without any random choice."""

from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import Matrix, blocks, float64_matrix

BLOCK = 4096  # rows, and columns, of the kernel matrix held at a time
SPLIT = 5000  # images per split of ADM's Inception Score


class Estimate(NamedTuple):
    """A value and its standard error, both in the unit of the score."""

    value: float
    standard_error: float


def kid(x: Matrix, y: Matrix) -> Estimate:
    """KID (Bińkowski et al. 2018): unbiased MMD², kernel (x·y / d + 1)³; x [m, d], y [n, d]; raw units.

    Over all pairs instead of random subsets: same expectation, least variance, no seed. It may be negative.
    With uᵢ = mean k(xᵢ, other x) - mean k(xᵢ, y) and vⱼ likewise, MMD² = mean u + mean v, and its standard
    error is 2 (var u / m + var v / n)^½, the first-order (Hoeffding) term of a U-statistic. That term
    vanishes when both sets come from one distribution; there the estimate is too large, by √2, not too small.
    Raises BenchError for non-finite features, unequal dimensions, and fewer than 2 images.
    """
    m, n = len(x), len(y)
    if x.shape[1] != y.shape[1] or min(m, n) < 2:
        raise BenchError(f"KID: needs two sets of 2 or more images and equal dimensions, got {x.shape}, {y.shape}")
    cross_rows, cross_columns = _cross_sums(x, y)
    u = _own_sums(x) / (m - 1) - cross_rows / n
    v = _own_sums(y) / (n - 1) - cross_columns / m
    error = 2 * np.sqrt(u.var(ddof=1) / m + v.var(ddof=1) / n)
    return Estimate(float(u.mean() + v.mean()), float(error))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # `base**3` calls pow, 20 times slower


def _cross_sums(x: Matrix, y: Matrix, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row and column sums of the kernel matrix of x and of y's rows from `start` on, a block at a time."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for here, a in blocks(x, BLOCK, "KID"):
        for there, b in blocks(y, BLOCK, "KID", start):
            block = _kernel(a, b)
            rows[here] += block.sum(1)
            columns[there] += block.sum(0)
    return rows, columns


def _own_sums(x: Matrix) -> np.ndarray:
    """Row sums of the kernel matrix of x with itself but for the diagonal; each pair is computed once."""
    sums = np.zeros(len(x))
    for here, a in blocks(x, BLOCK, "KID"):
        square = _kernel(a, a)
        np.fill_diagonal(square, 0)
        sums[here] += square.sum(1)
        if here.stop < len(x):
            rows, columns = _cross_sums(a, x, here.stop)
            sums[here] += rows
            sums += columns
    return sums


def inception_score(probabilities: Matrix, split: int = SPLIT) -> float:
    """Inception Score (Salimans et al. 2016): mean over splits of exp(mean KL(p(class | image) ‖ p(class))).

    probabilities [N, classes], rows summing to 1. As in ADM's evaluator the images are taken in the order given, never
    shuffled, `split` at a time; the last split holds what is left. The score grows with the size of the splits: compare
    only at equal N. Raises BenchError for rows that are no probabilities.
    """
    if split < 1:
        raise BenchError(f"Inception Score: splits of {split} images")
    starts = range(0, max(len(probabilities), 1), split)
    return float(np.mean([_score(probabilities[start : start + split]) for start in starts]))


def _score(probabilities: np.ndarray) -> float:
    p = float64_matrix(probabilities, "Inception Score")
    if (p < 0).any() or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise BenchError("Inception Score: the rows are no probabilities (they must be >= 0 and sum to 1)")
    marginal = p.mean(0)
    return float(np.exp((xlogy(p, p) - xlogy(p, marginal)).sum(1).mean()))
