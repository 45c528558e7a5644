"""The probe's parts and its protocol, on the CPU with clocks and memory counters that stand still."""

import numpy as np
import pytest
import torch
from test_measure_engine_worker import Channel, Event

from robuq_bench import cli
from robuq_bench.config.preset import DiT
from robuq_bench.errors import BenchError
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure import engine_waves as waves
from robuq_bench.measure import probe, probe_parts
from robuq_bench.measure.engine_records import Check
from robuq_bench.measure.engine_worker import READY
from robuq_bench.measure.probe_parts import Part, Ready
from robuq_bench.measure.probe_records import Throughput
from robuq_bench.models.dit import Shape

PLAN = probe.Plan(repeats=5)


@pytest.fixture
def on_cpu(monkeypatch, in_root):
    monkeypatch.setattr(methods, "DEVICE", "cpu")
    for module in (methods, probe_parts):
        monkeypatch.setattr(module, "SHAPE", Shape(8, 4, 10))
    monkeypatch.setitem(methods.SIZES, "XL/2", DiT(width=128, depth=2, heads=2, patch=2))
    monkeypatch.setattr(probe_parts, "PIXELS", 16)
    monkeypatch.setattr(probe_parts, "Captured", lambda update: update)
    monkeypatch.setattr(probe_parts, "PLAN", probe_parts.PLAN.model_copy(update={"compile": False}))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)


@pytest.mark.parametrize("name", ["train full precision", "train quantised"])
def test_a_training_step_trains(on_cpu, name):
    ready = probe_parts.parts()[name].make(3)
    losses = [ready.call(turn).item() for turn in range(3)]
    assert np.isfinite(losses).all() and losses[0] != losses[2]


@pytest.mark.parametrize("name", [name for name in probe_parts.parts() if "denoise" in name])
def test_a_denoiser_takes_a_whole_batch(on_cpu, name):
    ready = probe_parts.parts()[name].make(3)
    output = ready.call(0)
    assert output.shape[0] == 3 and output.shape[2:] == (8, 8) and torch.isfinite(output).all()
    assert (ready.check() is not None) == (name == "denoise deployed")


def test_the_deployed_denoiser_is_checked_against_the_simulated_one(on_cpu, monkeypatch):
    check = probe_parts.deployed(3).check()
    assert check.agrees and check.error < 1e-4 < check.bound
    monkeypatch.setattr(probe_parts, "_answers", lambda path, own=probe_parts._answers: (-own(path)[0], own(path)[1]))
    assert probe_parts.deployed(3).check().error == pytest.approx(2, rel=1e-3)


def test_features_and_the_autoencoder_take_a_whole_batch(on_cpu):
    assert len(probe_parts.features("EffNetLite0", 3).call(0)) == 3
    assert probe_parts.autoencoder("encode", 3).call(0).shape == (3, 4, 2, 2)
    assert probe_parts.autoencoder("decode", 3).call(0).shape == (3, 3, 16, 16)


def test_inception_needs_weights(on_cpu, refused):
    refused(lambda: probe_parts.parts()["features Inception"].make(2), "no weights", "--inception")


def measured(monkeypatch, part: Part) -> list:
    monkeypatch.setattr(probe, "parts", lambda weights=None: {"one": part})
    channel = Channel()
    probe.measure(probe.Task("one", None), PLAN, channel)
    return channel.sent


def test_a_part_gets_ready_then_is_timed(on_cpu, monkeypatch):
    check = Check(error=0.1, bound=0.2, against="x")
    part = Part("a part", lambda batch: Ready(torch.ones, batch, lambda: check), 8)
    ready, row = measured(monkeypatch, part)
    assert ready == READY and (row.part, row.batch, row.peak_bytes, row.check) == ("one", 8, 350, check)
    assert row.images_per_s == pytest.approx(8e3 / row.times.median_ms)


def test_a_batch_that_does_not_fit_is_halved(on_cpu, monkeypatch):
    made = []

    def make(batch):
        made.append(batch)
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return Ready(torch.ones, batch)

    *_, row = measured(monkeypatch, Part("a part", make, 8))
    assert made == [8, 4, 2] and row.batch == 2
    (row,) = measured(monkeypatch, Part("a part", lambda batch: make(99), 8))
    assert row.times is None and "CUDA out of memory" in row.reason


def test_what_is_wrong_or_missing_has_a_reason_and_no_speed(on_cpu, monkeypatch):
    wrong = Check(error=0.3, bound=0.2, against="the other")
    (row,) = measured(monkeypatch, Part("a part", lambda batch: Ready(torch.ones, batch, lambda: wrong), 8))
    assert row.times is None and row.reason == "output differs from the other by 0.3, more than 0.2"

    def refuse(batch):
        raise BenchError("no such thing")

    def crash(batch):
        raise ValueError("first\nsecond")

    assert measured(monkeypatch, Part("", refuse, 8))[0].reason == "no such thing"
    assert measured(monkeypatch, Part("", crash, 8))[0].reason == "ValueError: first"
    with pytest.raises(ValueError, match="times or a reason"):
        Throughput(part="one", what="a part")


def test_a_part_whose_process_dies_is_named(on_cpu, monkeypatch):
    class Ended:
        def join(self, seconds=None):
            pass

        def is_alive(self):
            return False

    def begin(target, task, plan):
        ours, theirs = waves.multiprocessing.get_context("spawn").Pipe()
        if task.part == "encode latents":
            theirs.send(Throughput(part=task.part, what="w", reason="stands for a row"))
        theirs.close()
        return waves.Worker(task, Ended(), ours)

    monkeypatch.setattr(probe, "start", begin)
    rows = list(probe.wave([probe.Task("decode latents", None), probe.Task("encode latents", None)], PLAN))
    assert [row.part for row in rows] == ["decode latents", "encode latents"]
    assert "process died" in rows[0].reason and rows[1].reason == "stands for a row"


def test_without_a_gpu_there_is_one_line(in_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["probe", "--out", str(tmp_path / "probe.json")]) != 0
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
