"""Shared by the tests of the metrics room."""

import shutil
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Iterator[Path]:
    """Random weights in torch-fidelity's format: its network, built without its download, scaled so that features
    vary from image to image."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network_class = module.FeatureExtractorInceptionV3
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    patch.setattr(network_class, "load_state_dict", lambda *_, **__: None)
    torch.manual_seed(0)
    network = network_class("inception", ["2048"])
    patch.undo()
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, torch.nn.BatchNorm2d):  # not the identity, so that folding is tested
            torch.nn.init.uniform_(part.weight, 0.8, 1.2)
            torch.nn.init.uniform_(part.running_var, 0.8, 1.2)
            torch.nn.init.normal_(part.running_mean, std=0.1)
            torch.nn.init.normal_(part.bias, std=0.1)
    folder = tmp_path_factory.mktemp("inception")
    torch.save(network.state_dict(), folder / "weights.pth")
    yield folder / "weights.pth"
    shutil.rmtree(folder)  # 95 MB
