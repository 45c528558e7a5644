"""The probe's parts and its protocol, on the CPU with clocks and memory counters that stand still."""

import argparse
import time

import numpy as np
import pytest
import torch
from test_measure_engine_worker import Event

from robuq_bench import cli
from robuq_bench.config.base import build
from robuq_bench.config.preset import DiT
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure import engine_waves as waves
from robuq_bench.measure import probe, probe_parts
from robuq_bench.measure.engine_records import Check, Hardware, Times
from robuq_bench.measure.engine_worker import READY
from robuq_bench.measure.probe_parts import Part, Ready
from robuq_bench.measure.probe_records import Probe, Throughput
from robuq_bench.metrics import inception
from robuq_bench.models.dit import Shape
from robuq_bench.train import captured

PLAN = probe.Plan(repeats=5)
UNKNOWN = ("driver", "triton", "max_sm_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w")
SIZES = {"multiprocessors": 1, "l2_bytes": 1, "memory_bytes": 90 << 30, "capability": "9.0"}
GPU = Hardware(name="Test GPU", cuda="13", torch="2", **SIZES, **dict.fromkeys(UNKNOWN))
TIMES = Times(median_ms=1.0, p20_ms=1.0, p80_ms=1.0, min_ms=1.0, repeats=5)


class Recorded:
    """Stands for the update as a CUDA graph."""

    graph = "recorded"

    def __init__(self, update):
        self.prepare, self.update = update.prepare, update

    def __call__(self, batch):
        return self.update(batch)


@pytest.fixture
def on_cpu(monkeypatch, in_root):
    monkeypatch.setattr(methods, "DEVICE", "cpu")
    for module in (methods, probe_parts):
        monkeypatch.setattr(module, "SHAPE", Shape(8, 4, 10))
    monkeypatch.setitem(methods.SIZES, "XL/2", DiT(width=128, depth=2, heads=2, patch=2))
    monkeypatch.setattr(probe_parts, "PIXELS", 16)
    monkeypatch.setattr(probe_parts, "Captured", Recorded)
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


def test_a_step_that_is_not_recorded_has_no_speed(on_cpu, monkeypatch):
    monkeypatch.setattr(Recorded, "graph", None)
    ready, row = measured(monkeypatch, Part("a part", probe_parts.parts()["train quantised"].make, 2, 1))
    assert ready == READY and row.times is None and "could not be recorded as a CUDA graph" in row.reason


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


@pytest.mark.parametrize("name", ["features Inception", "features torch-fidelity"])
def test_inception_needs_weights(on_cpu, refused, name):
    refused(lambda: probe_parts.parts()[name].make(2), "no weights", "--inception")


def test_torch_fidelity_is_given_the_same_images_and_weights(on_cpu, inception_file, monkeypatch):
    monkeypatch.setattr(inception, "CPU_BATCH", 3)  # the same bits only in the same batch
    made = probe_parts.parts(inception_file)
    ours, theirs = (made[f"features {name}"].make(3).call(0) for name in ("Inception", "torch-fidelity"))
    np.testing.assert_array_equal(theirs["2048"].numpy(), ours.pooled)


class Channel:
    """The child's end of a pipe whose parent says "make" and "go" at once."""

    def __init__(self):
        self.sent, self.words = [], ["go", "make"]

    def send(self, value):
        self.sent.append(value)

    def recv(self):
        if not self.words:
            raise EOFError
        return self.words.pop()


def measured(monkeypatch, part: Part) -> list:
    monkeypatch.setattr(probe, "parts", lambda weights=None: {"one": part})
    channel = Channel()
    probe.measure(probe.Task("one", None), PLAN, channel)
    return channel.sent


def test_a_part_gets_ready_then_is_timed(on_cpu, monkeypatch):
    """It is called enough for a training step to be recorded, but only after it has said that it is ready."""
    check, calls, given_back = Check(error=0.1, bound=0.2, against="x"), [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(len(calls)))
    monkeypatch.setattr(Channel, "send", lambda self, value: self.sent.append((value, len(calls))))
    (ready, before), (row, _) = measured(
        monkeypatch, Part("a part", lambda batch: Ready(calls.append, batch, lambda: check), 8, 1)
    )
    assert ready == READY and (row.part, row.batch, row.peak_bytes, row.check) == ("one", 8, 350, check)
    assert row.images_per_s == pytest.approx(8e3 / row.times.median_ms)
    assert before == given_back[-1] < captured.WARMUP < probe.FITTING + probe.WARM_UP


def test_a_batch_that_does_not_fit_is_halved(on_cpu, monkeypatch):
    made = []

    def make(batch):
        made.append(batch)
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return Ready(torch.ones, batch)

    *_, row = measured(monkeypatch, Part("a part", make, 8, 1))
    assert made == [8, 4, 2] and row.batch == 2
    (row,) = measured(monkeypatch, Part("a part", lambda batch: make(99), 8, 1))
    assert row.times is None and "CUDA out of memory" in row.reason


def test_what_is_wrong_or_missing_has_a_reason_and_no_speed(on_cpu, monkeypatch):
    wrong = Check(error=0.3, bound=0.2, against="the other")
    _, row = measured(monkeypatch, Part("a part", lambda batch: Ready(torch.ones, batch, lambda: wrong), 8, 1))
    assert row.times is None and row.reason == "output differs from the other by 0.3, more than 0.2"

    def refuse(batch):
        raise BenchError("no such thing")

    def crash(batch):
        raise ValueError("first\nsecond")

    assert measured(monkeypatch, Part("", refuse, 8, 1))[0].reason == "no such thing"
    assert measured(monkeypatch, Part("", crash, 8, 1))[0].reason == "ValueError: first"
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
    rows = list(probe.rows([probe.Task("decode latents", None), probe.Task("encode latents", None)], PLAN, 80))
    assert [row.part for row in rows] == ["decode latents", "encode latents"]
    assert "process died" in rows[0].reason and rows[1].reason == "stands for a row"


def test_the_record_says_what_was_not_timed(on_cpu, monkeypatch, tmp_path):
    """A probe that is killed in mid-timing leaves a record of all its parts."""

    def rows(tasks, plan, free):
        time.sleep(0.06)  # for the record's seconds, of which it keeps tenths
        yield Throughput(part=tasks[1].part, what="w", batch=1, times=TIMES)
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "rows", rows)
    monkeypatch.setattr(probe, "hardware", lambda: GPU)
    monkeypatch.setattr(probe.jit, "architecture", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (90e9, 90e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    out = tmp_path / "probe.json"
    given = argparse.Namespace(
        part=["encode latents", "decode latents"], inception=None, repeats=5, patience=9, out=out
    )
    with pytest.raises(KeyboardInterrupt):
        probe.run(given)
    encode, decode = build(Probe, read_json(out), str(out)).parts
    assert decode.images_per_s == 1000 and "not timed" in encode.reason and encode.part == "encode latents"


def test_parts_are_made_side_by_side_while_memory_lasts():
    names = ["train quantised", "denoise deployed", "features Inception", "train full precision"]  # 19, 5, 3, 17 GiB
    workers = [waves.Worker(probe.Task(name, None), None, None) for name in names]

    def made(free):
        return [[worker.task.part for worker in group] for group in probe.groups(workers, free)]

    assert made(44) == [names]
    assert made(43) == [names[:3], names[3:]] and made(26) == [names[:2], names[2:]]
    assert made(2) == [[name] for name in names]


def test_patience_ends(on_cpu, monkeypatch):
    class Silent:
        def __init__(self):
            self.killed = False

        def join(self, seconds=None):
            pass

        def is_alive(self):
            return not self.killed

        def kill(self):
            self.killed = True

    ends = []

    def begin(target, task, plan):
        ours, theirs = waves.multiprocessing.get_context("spawn").Pipe()
        ends.append(theirs)
        return waves.Worker(task, Silent(), ours)

    monkeypatch.setattr(probe, "start", begin)
    began = time.monotonic()
    (row,) = probe.rows([probe.Task("decode latents", None)], probe.Plan(repeats=5, patience=0.05), 80)
    assert time.monotonic() - began < 2
    assert "not ready within 0.05 s" in row.reason


def test_without_a_gpu_there_is_one_line(in_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["probe", "--out", str(tmp_path / "probe.json")]) != 0
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
