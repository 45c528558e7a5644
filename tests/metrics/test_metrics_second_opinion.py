"""clean-fid as a second opinion, on a small TorchScript network in the place of its Inception."""

import importlib.util
import warnings

import numpy as np
import pytest
import scipy
import torch
from PIL import Image

from robuq_bench.cli import main
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, sha256_file
from robuq_bench.metrics import second_opinion
from robuq_bench.progress import Bar
from robuq_bench.sample.archive import Samples, save

usable = pytest.mark.skipif(
    importlib.util.find_spec("cleanfid") is None or scipy.__version__ >= "1.18",
    reason="needs clean-fid and SciPy < 1.18",
)


class Layers(torch.nn.Module):
    """299 x 299 -> 2048 numbers: averages over a 27 x 27 grid, of which some are left out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, [27, 27]).flatten(1)[:, :2048] ** 2


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def weights(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and is what clean-fid loads
        torch.jit.script(Network()).save(tmp_path / "network.pt")
    return tmp_path / "network.pt"


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


@usable
def test_features_are_clean_fids_own(tmp_path, weights):
    from cleanfid.fid import get_folder_features

    for index, image in enumerate(images(5, 0)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    network = second_opinion.load_network(weights, "cpu")
    theirs = get_folder_features(str(tmp_path), network, num_workers=0, device=torch.device("cpu"), verbose=False)
    with Bar("test", 5) as bar:
        ours = second_opinion.features(images(5, 0), network, "cpu", bar)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@usable
def test_the_verb_writes_a_figure_with_provenance(tmp_path, weights, monkeypatch, capsys):
    card = {"status": "ok", "reason": None, "protocol": {}, "packed": "0" * 64, "provenance": {}}
    save(tmp_path / "samples.npz", Samples(images(8, 1), np.zeros(8, dtype=np.int64), card))
    np.savez(tmp_path / "real.npz", images(9, 2) // 2)
    monkeypatch.setattr(second_opinion, "SHA256", sha256_file(weights))
    monkeypatch.setattr(second_opinion, "distance", lambda fake, real: float(fake.mean() - real.mean()))
    paths = [f"--{name}={tmp_path / file}" for name, file in {"samples": "samples.npz", "real": "real.npz"}.items()]
    assert main(["second-opinion", "--preset", "smoke", *paths, f"--weights={weights}", f"--out={tmp_path / 'o'}"]) == 0
    record = read_json(tmp_path / "o")
    assert (record["n"], record["n_reference"], record["weights"]) == (8, 9, sha256_file(weights))
    assert record["clean_fid"] != 0
    assert record["provenance"]["clean_fid"]
    assert "(8 images against 9)" in capsys.readouterr().out


@usable
def test_distance_of_a_shift(rng):
    rows = rng.normal(size=(200, 6))
    assert second_opinion.distance(rows, rows + 2) == pytest.approx(24, rel=1e-6)


def test_says_when_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'robuq-bench\[second-opinion\]'"):
        second_opinion.check_usable()


@pytest.mark.parametrize("version", ["1.18.0", "1.20.1", "2.0.0rc1"])
def test_says_when_scipy_is_too_new(monkeypatch, version):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(BenchError, match=rf"cannot run with SciPy {version}, .* 'scipy<1.18'"):
        second_opinion.check_usable(version)
    second_opinion.check_usable("1.17.1")


def test_loads_the_published_network_alone(weights, tmp_path):
    with pytest.raises(BenchError, match=r"not clean-fid's inception-2015-12-05\.pt"):
        second_opinion.checked_weights(weights)
    with pytest.raises(BenchError, match="no such weights file"):
        second_opinion.checked_weights(tmp_path / "nothing.pt")
