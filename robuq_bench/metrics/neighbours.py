"""Improved precision and recall (Kynkäänniemi et al. 2019), as in ADM's evaluator."""

from typing import NamedTuple

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import Matrix, blocks

BLOCK = 4096  # rows, and columns, of distances held at a time


class PrecisionRecall(NamedTuple):
    """precision: share of fakes within the real manifold; recall: share of reals within the fake one; 0…1."""

    precision: float
    recall: float


def precision_recall(real: Matrix, fake: Matrix, k: int = 3) -> PrecisionRecall:
    """The manifold of a set is the union of balls, one per point, reaching to its k-th nearest other point.

    real [N, d], fake [M, d]. Both depend on N and M: compare only at equal sizes. Computed in float64, in blocks.
    Raises BenchError for non-finite features, unequal dimensions, and sets of k points or fewer.
    """
    if real.shape[1] != fake.shape[1] or min(len(real), len(fake)) <= k:
        raise BenchError(
            f"precision: needs two sets of more than {k} images of equal dimensions, got {real.shape}, {fake.shape}"
        )
    return PrecisionRecall(
        precision=_share_inside(fake, real, _radii(real, k)),
        recall=_share_inside(real, fake, _radii(fake, k)),
    )


def _radii(points: Matrix, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest other point."""
    radii = np.empty(len(points))
    for rows, x in blocks(points, BLOCK, "precision"):
        nearest = np.full((len(x), k), np.inf)
        for columns, y in blocks(points, BLOCK, "precision"):
            distances = _squared_distances(x, y)
            if rows == columns:
                np.fill_diagonal(distances, np.inf)  # not its own neighbour
            nearest = np.partition(np.hstack([nearest, distances]), k - 1, axis=1)[:, :k]
        radii[rows] = nearest.max(1)
    return radii


def _share_inside(points: Matrix, centres: Matrix, radii: np.ndarray) -> float:
    """Share of `points` that lie in a ball around any of `centres`."""
    inside = 0
    for _, x in blocks(points, BLOCK, "precision"):
        covered = np.zeros(len(x), dtype=bool)
        for columns, y in blocks(centres, BLOCK, "precision"):
            covered |= (_squared_distances(x, y) <= radii[columns]).any(1)
        inside += int(covered.sum())
    return inside / len(points)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)
    return (squares - 2 * (x @ y.T)).clip(min=0)
