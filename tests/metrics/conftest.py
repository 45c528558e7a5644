"""Shared by the tests of the metrics room."""

import numpy as np
import pytest
import torch

from robuq_bench.metrics.features import Features, Source


@pytest.fixture(autouse=True)
def one_thread():
    """Bits are compared at one thread; it also keeps parallel test workers out of each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_features():
    """Features of n pretend images: 8 pooled, 6 spatial dimensions, 5 classes."""

    def make(n: int, seed: int, shift: float = 0.0, name: str = "Pretend") -> Features:
        rng = np.random.default_rng(seed)
        pooled = (rng.normal(size=(n, 8)) + shift).astype(np.float32)
        spatial = (rng.normal(size=(n, 6)) + shift).astype(np.float32)
        probabilities = rng.dirichlet(np.full(5, 0.3), n).astype(np.float32)
        return Features(pooled, spatial, probabilities, Source(name, "d1", "p"))

    return make
