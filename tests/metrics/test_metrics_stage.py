"""The verbs `reference`, `evaluate` and `export-adm` on files, with the features that need no weights."""

import subprocess
import sys

import numpy as np
import pytest

from robuq_bench.cli import main
from robuq_bench.files import read_json
from robuq_bench.metrics import load_extractor, store
from robuq_bench.metrics.frechet import moments
from robuq_bench.sample.archive import Samples, save

N = 60
CHANGES = f"sample.n={N},data.held_out={N},evaluate.extractor=Pixels"


@pytest.fixture
def samples(tmp_path, rng):
    def write(n: int = N, status: str = "ok"):
        images = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
        card = {"status": status, "reason": None, "protocol": {}, "packed": "0" * 64, "provenance": {}}
        save(tmp_path / "samples.npz", Samples(images, np.zeros(n, dtype=np.int64), card))
        return tmp_path / "samples.npz"

    return write


def call(verb: str, *options: object, changes: str = CHANGES) -> int:
    preset = [] if verb == "export-adm" else ["--preset", "smoke", "--set", changes]
    return main([verb, *preset, *map(str, options)])


@pytest.fixture
def reference(tmp_path):
    assert call("reference", "--reference", tmp_path / "reference", "--floor", tmp_path / "floor.json") == 0
    return tmp_path / "reference"


def test_kept_features_give_the_same_scores(tmp_path, samples, reference, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 16)
    common = ("--samples", samples(), "--reference", reference)
    assert call("evaluate", *common, "--out", tmp_path / "a.json") == 0
    assert call("evaluate", *common, "--out", tmp_path / "b.json", "--features", tmp_path / "features") == 0
    scores = [read_json(tmp_path / name)["scores"] for name in ("a.json", "b.json")]
    assert scores[0] == scores[1]
    assert len(list((tmp_path / "features").rglob("*.npz"))) == 4


def test_another_number_of_images_is_refused(tmp_path, samples, reference, capsys):
    assert call("evaluate", "--samples", samples(50), "--reference", reference, "--out", tmp_path / "m.json") == 2
    assert "holds 50 images, and the preset scores 60 (sample.n)" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("features", [(), ("--features", "kept")])
def test_a_diverged_row_has_no_scores(tmp_path, samples, reference, features):
    common = ("--samples", samples(0, "diverged"), "--reference", reference, "--out", tmp_path / "m.json")
    assert call("evaluate", *common, *features) == 0
    record = read_json(tmp_path / "m.json")
    assert (record["status"], record["scores"]) == ("diverged", None)


@pytest.fixture
def adm(tmp_path, rng):
    """A reference file in ADM's layout."""
    images = rng.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    found = load_extractor("Pixels").features(images)
    pooled, spatial = moments(found.pooled), moments(found.spatial)
    facts = {"mu": pooled.mean, "sigma": pooled.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "adm.npz", arr_0=images, **facts)
    return tmp_path / "adm.npz"


def test_processes_share_the_features(tmp_path, samples, adm, warm):
    """Three chunks for two processes: the scores are those of one."""
    n = 2 * store.CHUNK + 100
    changes = f"sample.n={n},evaluate.extractor=Pixels,evaluate.reference={adm}"
    reference = ("--reference", tmp_path / "reference")
    assert call("reference", *reference, "--floor", tmp_path / "floor.json", changes=changes) == 0
    options = ("--preset", "smoke", "--set", changes, "--samples", samples(n), *reference)
    for processes in (1, 2):
        verb = ["launch", "--processes", processes, "--", "evaluate"] if processes > 1 else ["evaluate"]
        files = ("--out", tmp_path / f"{processes}.json", "--features", tmp_path / f"features{processes}")
        line = [sys.executable, "-m", "robuq_bench.cli", *verb, *options, *files]
        done = subprocess.run([str(word) for word in line], env=warm, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    alone, shared = (read_json(tmp_path / f"{processes}.json")["scores"] for processes in (1, 2))
    assert shared == alone and alone["n"] == n
    assert len(list((tmp_path / "features2").rglob("*.npz"))) == 3


def test_an_adm_reference_takes_the_place_of_own_images(tmp_path, samples, adm):
    changes = f"{CHANGES},evaluate.reference={adm}"
    reference = ("--reference", tmp_path / "reference")
    assert call("reference", *reference, "--floor", tmp_path / "floor.json", changes=changes) == 0
    assert call("evaluate", "--samples", samples(), *reference, "--out", tmp_path / "m.json", changes=changes) == 0
    floor, scores = (read_json(tmp_path / name)["scores"] for name in ("floor.json", "m.json"))
    assert (floor["n"], scores["n"], scores["n_reference"], scores["n_neighbours"]) == (50, N, None, N)


def test_export_for_adm(tmp_path, samples):
    assert call("export-adm", "--samples", samples(), "--out", tmp_path / "adm.npz") == 0
    with np.load(tmp_path / "adm.npz") as file:
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((N, 8, 8, 3), np.uint8)


def test_nothing_to_export(tmp_path, samples, capsys):
    assert call("export-adm", "--samples", samples(0, "diverged"), "--out", tmp_path / "adm.npz") == 2
    assert "no images to export" in capsys.readouterr().err
