"""Improved precision and recall (Kynkäänniemi et al. 2019), as in ADM's evaluator."""

from typing import NamedTuple

import torch
from torch import Tensor

from robuq_bench.errors import BenchError
from robuq_bench.metrics.arrays import Matrix, tensors

BLOCK = 4096  # rows, and columns, of distances held at a time


class PrecisionRecall(NamedTuple):
    """precision: share of fakes within the real manifold; recall: share of reals within the fake one; 0…1."""

    precision: float
    recall: float


def precision_recall(real: Matrix, fake: Matrix, k: int = 3, device: torch.device | str = "cpu") -> PrecisionRecall:
    """The manifold of a set is the union of balls, one per point, reaching to its k-th nearest other point.

    real [N, d], fake [M, d]. Both depend on N and M: compare only at equal sizes. Computed in float64 on `device`, in
    blocks. Raises BenchError for non-finite features, unequal dimensions, and sets of k points or fewer.
    """
    if real.shape[1] != fake.shape[1] or min(len(real), len(fake)) <= k:
        raise BenchError(
            f"precision: needs two sets of more than {k} images of equal dimensions, got {real.shape}, {fake.shape}"
        )
    real_radii, fake_radii = _radii(real, k, device), _radii(fake, k, device)
    real_inside = torch.zeros(len(real), dtype=torch.bool, device=device)
    fake_inside = torch.zeros(len(fake), dtype=torch.bool, device=device)
    for rows, x in tensors(fake, BLOCK, "precision", device):
        for columns, y in tensors(real, BLOCK, "precision", device):
            distances = _squared_distances(x, y)
            fake_inside[rows] |= (distances <= real_radii[columns]).any(1)
            real_inside[columns] |= (distances <= fake_radii[rows, None]).any(0)
    return PrecisionRecall(precision=_share(fake_inside), recall=_share(real_inside))


def _radii(points: Matrix, k: int, device: torch.device | str) -> Tensor:
    """Squared distance of each point to its k-th nearest other point, float64 [N]."""
    radii = torch.empty(len(points), dtype=torch.float64, device=device)
    for rows, x in tensors(points, BLOCK, "precision", device):
        nearest = x.new_full((len(x), k), torch.inf)
        for columns, y in tensors(points, BLOCK, "precision", device):
            distances = _squared_distances(x, y)
            if rows == columns:
                distances.fill_diagonal_(torch.inf)  # not its own neighbour
            nearest = torch.hstack([nearest, distances]).topk(k, largest=False).values
        radii[rows] = nearest.amax(1)
    return radii


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm(x, y.T, alpha=-2).clamp_(min=0)


def _share(inside: Tensor) -> float:
    return inside.sum().item() / len(inside)
