"""The verbs `reference` and `evaluate` with a second extractor: each scores by itself, against its own reference."""

import json

import numpy as np
import pytest

from robuq_bench import cli
from robuq_bench.metrics import extractors
from robuq_bench.metrics.evaluate import evaluate
from robuq_bench.metrics.extractors import Pixels
from robuq_bench.metrics.reference import load_reference, reference_file
from robuq_bench.sample.archive import Samples, save

N = 60


class Larger(Pixels):
    """Another opinion: features of Pixels, larger."""

    name = "Larger"

    def forward(self, images):
        pooled, spatial, probabilities = super().forward(images)
        return pooled * 3, spatial * 2, probabilities


def call(verb: str, *arguments) -> int:
    chosen = f"sample.n={N},evaluate.also=[Larger]"
    return cli.main([verb, "--preset", "smoke", "--set", chosen, *map(str, arguments)])


@pytest.fixture
def scored(in_root, tmp_path, monkeypatch):
    """(metrics.json, floor.json, folder of references) of random images under two extractors."""
    monkeypatch.setitem(extractors.EXTRACTORS, "Larger", Larger)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (N, 8, 8, 1), dtype=np.uint8)
    card = {"status": "ok", "reason": "", "protocol": {}, "packed": "abc", "provenance": {}}
    save(tmp_path / "s.npz", Samples(images, np.zeros(N, np.int64), card))
    folder = tmp_path / "moments"
    assert call("reference", "--reference", folder, "--floor", tmp_path / "floor.json") == 0
    made = ("--samples", tmp_path / "s.npz", "--reference", folder, "--out", tmp_path / "m.json")
    assert call("evaluate", *made) == 0
    metrics, floor = (json.loads((tmp_path / name).read_text()) for name in ("m.json", "floor.json"))
    return images, metrics, floor, folder


def test_each_extractor_scores_against_its_own_reference(scored):
    images, metrics, _, folder = scored
    for extractor, found in ((Pixels(), metrics["scores"]), (Larger(), *metrics["also"])):
        expected = evaluate(extractor.features(images), load_reference(reference_file(folder, extractor.name)))
        assert found == pytest.approx(expected)
    assert metrics["also"][0]["FD"] == pytest.approx(9 * metrics["scores"]["FD"])  # features three times as large


def test_the_floor_has_both(scored):
    _, _, floor, _ = scored
    assert [floor["scores"]["extractor"], *(s["extractor"] for s in floor["also"])] == ["Pixels", "Larger"]


def test_gpu_time_is_recorded(scored):
    _, metrics, floor, _ = scored
    assert metrics["provenance"]["device_seconds"] == floor["provenance"]["device_seconds"] == 0


def test_an_extractor_named_twice(in_root, capsys):
    places = ["--samples", "a", "--reference", "b", "--out", "c"]
    assert cli.main(["evaluate", "--preset", "smoke", "--set", "evaluate.also=[Pixels]", *places]) == 2
    assert "an extractor is named twice" in capsys.readouterr().err


def test_a_reference_that_lacks_one(scored, tmp_path, capsys):
    reference_file(scored[3], "Larger").unlink()
    made = ("--samples", tmp_path / "s.npz", "--reference", scored[3], "--out", tmp_path / "n.json")
    assert call("evaluate", *made) == 2
    assert "Larger.safetensors: no such reference" in capsys.readouterr().err
