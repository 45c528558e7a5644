"""Kernel Inception Distance and Inception Score, in float64 and without any random choice."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import Matrix, float64_matrix, tensors

BLOCK = 4096  # rows, and columns, of the kernel matrix held at a time
SPLIT = 5000  # images per split of ADM's Inception Score


class Estimate(NamedTuple):
    """A value and its standard error, both in the unit of the score."""

    value: float
    standard_error: float


def kid(x: Matrix, y: Matrix, device: torch.device | str = "cpu") -> Estimate:
    """KID (Bińkowski et al. 2018): unbiased MMD², kernel (x·y / d + 1)³; x [m, d], y [n, d]; raw units.

    Over all pairs instead of random subsets: same expectation, least variance, no seed. It may be negative.
    With uᵢ = mean k(xᵢ, other x) - mean k(xᵢ, y) and vⱼ likewise, MMD² = mean u + mean v, and its standard
    error is 2 (var u / m + var v / n)^½, the first-order (Hoeffding) term of a U-statistic. That term
    vanishes when both sets come from one distribution; there the estimate is too large, by √2, not too small.
    Computed in float64 on `device`, in blocks.
    Raises BenchError for non-finite features, unequal dimensions, and fewer than 2 images.
    """
    m, n = len(x), len(y)
    if x.shape[1] != y.shape[1] or min(m, n) < 2:
        raise BenchError(f"KID: needs two sets of 2 or more images and equal dimensions, got {x.shape}, {y.shape}")
    cross_rows, cross_columns = _cross_sums(x, y, device)
    u = _own_sums(x, device) / (m - 1) - cross_rows / n
    v = _own_sums(y, device) / (n - 1) - cross_columns / m
    error = 2 * (u.var() / m + v.var() / n).sqrt()
    return Estimate((u.mean() + v.mean()).item(), error.item())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def _cross_sums(x: Matrix, y: Matrix, device: torch.device | str, start: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column sums of the kernel matrix of x and of y's rows from `start` on, a block at a time."""
    rows, columns = (torch.zeros(len(points), dtype=torch.float64, device=device) for points in (x, y))
    for here, a in tensors(x, BLOCK, "KID", device):
        for there, b in tensors(y, BLOCK, "KID", device, start):
            block = _kernel(a, b)
            rows[here] += block.sum(1)
            columns[there] += block.sum(0)
    return rows, columns


def _own_sums(x: Matrix, device: torch.device | str) -> Tensor:
    """Row sums of the kernel matrix of x with itself but for the diagonal; each pair is computed once."""
    sums = torch.zeros(len(x), dtype=torch.float64, device=device)
    for here, a in tensors(x, BLOCK, "KID", device):
        sums[here] += _kernel(a, a).fill_diagonal_(0).sum(1)
        if here.stop < len(x):
            rows, columns = _cross_sums(x[here], x, device, here.stop)
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
