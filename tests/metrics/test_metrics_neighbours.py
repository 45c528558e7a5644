import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.metrics import neighbours
from robuq_bench.metrics.neighbours import precision_recall


def naive(real, fake, k) -> tuple[float, float]:
    """The definition, one distance at a time."""

    def distance(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(points, i):
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    def share(points, centres):
        radii = [radius(centres, i) for i in range(len(centres))]
        inside = [any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(inside) / len(points)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_is_its_definition(rng, monkeypatch, k):
    real, fake = rng.normal(size=(40, 3)), rng.normal(0.7, 0.6, size=(33, 3))
    expected = naive(real, fake, k)
    assert expected[0] != expected[1]
    assert precision_recall(real, fake, k) == pytest.approx(expected)
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    assert precision_recall(real, fake, k) == pytest.approx(expected)


def test_a_model_that_lost_a_mode_has_precision_without_recall(rng):
    """The direction: torch-fidelity had the two swapped for years."""
    left, right = rng.normal(-50, 1, size=(100, 4)), rng.normal(50, 1, size=(100, 4))
    result = precision_recall(real=np.concatenate([left, right]), fake=left[::2])
    assert result.precision == 1
    assert 0.4 < result.recall < 0.55


def test_a_model_that_adds_rubbish_has_recall_without_precision(rng):
    real, rubbish = rng.normal(-50, 1, size=(100, 4)), rng.normal(50, 1, size=(100, 4))
    result = precision_recall(real=real, fake=np.concatenate([real, rubbish]))
    assert result == (0.5, 1)


def test_swapping_the_sets_swaps_the_scores(rng):
    a, b = rng.normal(size=(50, 3)), rng.normal(0.5, 2, size=(50, 3))
    assert precision_recall(a, b) == precision_recall(b, a)[::-1]


@pytest.mark.parametrize("fake", [np.zeros((3, 2)), np.zeros((9, 3)), np.full((9, 2), np.inf)])
def test_refuses(rng, fake):
    with pytest.raises(BenchError, match="precision"):
        precision_recall(rng.normal(size=(9, 2)), fake)
