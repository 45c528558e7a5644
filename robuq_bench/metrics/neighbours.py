"""Improved precision and recall (Kynkäänniemi et al. 2019), as in ADM's evaluator."""

from typing import NamedTuple

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import float64_matrix

BLOCK = 1024  # rows of distances held at a time


class PrecisionRecall(NamedTuple):
    """precision: share of fakes within the real manifold; recall: share of reals within the fake one; 0…1."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """The manifold of a set is the union of balls, one per point, reaching to its k-th nearest other point.

    real [N, d], fake [M, d]. Both depend on N and M: compare only at equal sizes. Computed in float64.
    Raises BenchError for non-finite features, unequal dimensions, and sets of k points or fewer.
    """
    real, fake = float64_matrix(real, "precision"), float64_matrix(fake, "precision")
    if real.shape[1] != fake.shape[1] or min(len(real), len(fake)) <= k:
        raise BenchError(
            f"precision: needs two sets of more than {k} images of equal dimensions, got {real.shape}, {fake.shape}"
        )
    return PrecisionRecall(
        precision=_share_inside(fake, real, _radii(real, k)),
        recall=_share_inside(real, fake, _radii(fake, k)),
    )


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest other point."""
    radii = np.empty(len(points))
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], points)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf  # not its own neighbour
        radii[start : start + BLOCK] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _share_inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> float:
    """Share of `points` that lie in a ball around any of `centres`."""
    inside = 0
    for start in range(0, len(points), BLOCK):
        distances = _squared_distances(points[start : start + BLOCK], centres)
        inside += int((distances <= radii).any(1).sum())
    return inside / len(points)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)
    return (squares - 2 * (x @ y.T)).clip(min=0)
