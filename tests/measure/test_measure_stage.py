"""Measuring a packed model: the deployed latency stands beside the simulated one, or the reason why it does not."""

import json

import pytest
import torch

from robuq_bench import cli
from robuq_bench.config.preset import DiT, Latency
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.measure import stage
from robuq_bench.quant.convert import convert, uniform_bits

PLAN = Latency(batch=2, repeats=3)


@pytest.fixture
def stored(denoiser, card, variant, tmp_path):
    """A packed file of a model that the engine can run, or of one that it cannot."""

    def make(row: str):
        spec = DiT(width=128, depth=2, heads=2, patch=2)
        model = denoiser(0, spec)
        bits = uniform_bits(model, variant(row))
        model = convert(model, variant(row), bits, 0)
        path = tmp_path / "packed.safetensors"
        facts = card(row, model=spec, bits=bits)
        packed.export(model, facts, path)
        return path

    return make


def test_a_cpu_times_the_simulation_and_says_why_nothing_else(stored, in_root, tmp_path):
    out = tmp_path / "measure.json"
    path = stored("robuq_uniform/W1.58A2")
    assert cli.main(["measure", "--preset", "smoke", "--packed", str(path), "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["latency"]["label"] == "simulated" and record["size"]["bytes"] == path.stat().st_size
    assert record["deployed"]["latency"] is None and "CUDA GPU" in record["deployed"]["reason"]


def test_a_recipe_that_the_engine_cannot_run_is_named(stored):
    path = stored("plain_qat/W1.58A4")
    model, card = packed.load(path)
    found = stage.measure_deployed(path, card, model, PLAN, "cuda")
    assert found["latency"] is None and found["reason"].startswith("the engine cannot run it: this model ")


@pytest.fixture
def as_gpu(monkeypatch):
    """The deployed model's CPU reference stands for the GPU's."""
    monkeypatch.setattr(stage, "deploy", lambda path, device: deploy(path, "cpu"))
    monkeypatch.setattr(stage, "describe", lambda device: "Test GPU")
    original, agreement = stage.time_forward, stage.agreement
    monkeypatch.setattr(stage, "time_forward", lambda *given: original(*given[:-1], "cpu"))
    monkeypatch.setattr(stage, "agreement", lambda *given: agreement(*given[:-1], "cpu"))


def test_a_deployed_model_that_agrees_is_timed(stored, as_gpu):
    path = stored("robuq_uniform/W1.58A2")
    model, card = packed.load(path)
    found = stage.measure_deployed(path, card, model, PLAN, "cuda")
    assert found["reason"] == "" and found["latency"]["label"] == "deployed: Test GPU"
    assert found["check"]["error"] < 1e-4 < found["check"]["bound"]


def test_a_deployed_model_that_disagrees_has_no_latency(stored, as_gpu):
    path = stored("robuq_uniform/W1.58A2")
    model, card = packed.load(path)
    with torch.no_grad():
        model.proj_out_2.weight *= 2
    found = stage.measure_deployed(path, card, model, PLAN, "cuda")
    assert found["latency"] is None and "differs" in found["reason"]
