"""A whole-forward measurement, here on the CPU with clocks and memory counters that stand still."""

import time
from multiprocessing import Pipe

import pytest
import torch

from robuq_bench.config.preset import DiT
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure import engine_waves as waves
from robuq_bench.measure import engine_worker as worker
from robuq_bench.measure.engine_records import Forward
from robuq_bench.measure.engine_worker import READY, Plan, Task
from robuq_bench.models.dit import Shape

PLAN = Plan(batches=(2, 3), repeats=5, most_seconds=1.0)


class Event:
    def __init__(self, enable_timing):
        pass

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Channel:
    """The child's end of a pipe whose parent says "go" at once."""

    def __init__(self):
        self.sent, self.heard = [], 0

    def send(self, value):
        self.sent.append(value)

    def recv(self):
        self.heard += 1
        if self.heard > 1:
            raise EOFError
        return "go"

    def close(self):
        pass


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(methods, "DEVICE", "cpu")
    for module in (methods, worker):
        monkeypatch.setattr(module, "SHAPE", Shape(8, 4, 10))
    monkeypatch.setitem(methods.SIZES, "S/2", DiT(width=128, depth=2, heads=2, patch=2))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name, value in (("memory_allocated", 100), ("max_memory_allocated", 350)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


def run(method: str, batch: int, folder) -> list:
    task, channel = Task("S/2", method, batch, folder), Channel()
    if not task.expected.exists():
        worker.reference(task, PLAN, channel)
    worker.measure(task, PLAN, channel)
    return channel.sent


@pytest.mark.parametrize("method", ["W1.58A2 mixed", "fp32 eager", "bf16 eager"])
def test_a_row_is_checked_then_timed(on_cpu, in_root, tmp_path, method):
    ready, row = run(method, 3, tmp_path)
    assert ready == READY and row.status == "ok" and row.times.repeats == 5
    assert 0 <= row.check.error <= row.check.bound and row.peak_bytes == 250 and row.resident_bytes == 0
    assert row.file_bytes > 0 and (row.average_bits is not None) == method.startswith("W1.58")
    if method != "bf16 eager":
        assert row.check.error < 1e-5


def test_a_worker_stays_until_it_is_let_go(on_cpu, in_root, tmp_path):
    task, channel = Task("S/2", "fp32 eager", 2, tmp_path), Channel()
    worker.reference(task, PLAN, channel)
    worker.measure(task, PLAN, channel)
    assert channel.sent[-1].status == "ok" and channel.heard == 2


def test_a_model_that_answers_otherwise_is_not_timed(on_cpu, in_root, tmp_path, monkeypatch):
    original = methods.load

    def other(method, spec, path):
        model = original(method, spec, path)

        def wrong(images, timestep, labels):
            return -model(images, timestep, labels)

        wrong.model = model.model
        return wrong

    run("fp32 eager", 2, tmp_path)
    monkeypatch.setattr(methods, "load", other)
    (row,) = run("fp32 eager", 2, tmp_path)
    assert row.status == "disagrees" and row.times is None and row.check.error == pytest.approx(2, rel=1e-3)


def test_one_wrong_image_at_the_end_is_seen(on_cpu, in_root, tmp_path):
    task = Task("S/2", "fp32 eager", 3, tmp_path)
    worker.reference(task, PLAN, Channel())
    with torch.inference_mode():
        good = methods.load(methods.METHODS["fp32 eager"], methods.SIZES["S/2"], None)(*worker.inputs(3))
        assert worker.agreement(good, task).agrees
        bad = good.clone()
        bad[2] *= 1.001
        assert not worker.agreement(bad, task).agrees
        bad[0, 0, 0, 0] = float("nan")
        assert not worker.agreement(bad, task).agrees


def test_what_is_missing_or_breaks_is_said(on_cpu, in_root, tmp_path, monkeypatch):
    monkeypatch.setattr(methods.importlib.util, "find_spec", lambda name: None)
    (row,) = run("fp8 compiled", 2, tmp_path)
    assert row.status == "not available" and "torchao is not installed" in row.reason

    def crash(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(methods, "load", crash)
    (row,) = run("fp32 eager", 2, tmp_path)
    assert (row.status, row.reason) == ("failed", "RuntimeError: first line")

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried a lot")

    monkeypatch.setattr(methods, "load", full)
    assert run("fp32 eager", 2, tmp_path)[0].status == "out of memory"


def test_a_failed_reference_is_passed_on(on_cpu, in_root, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "write_packed", lambda *_: 1 / 0)
    (row,) = run("W1.58A2", 2, tmp_path)
    assert row.status == "not available" and "ZeroDivisionError" in row.reason


class Ended:
    """A process that has ended."""

    def join(self, seconds=None):
        pass

    def is_alive(self):
        return False


def test_a_wave_times_one_after_the_other_and_names_the_dead(tmp_path):
    tasks = [Task("S/2", name, 2, tmp_path) for name in ("good", "dead", "silent", "refused")]
    theirs = {}

    def begin(target, task, plan):
        ours, end = Pipe()
        theirs[task.method] = end
        if target is worker.reference:
            assert task.method == "good"
            return waves.Worker(task, Ended(), ours)
        if task.method == "good":
            end.send(READY)
            end.send(waves.failed(task, "stands for a row"))
        if task.method == "dead":
            end.close()
        if task.method == "refused":
            end.send(Forward(model="S/2", method="refused", batch=2, status="not available", reason="no package"))
        return waves.Worker(task, Ended(), ours)

    rows = list(waves.wave(tasks, tasks[:1], PLAN, 0.5, begin))
    assert [row.method for row in rows] == [task.method for task in tasks]
    assert rows[0].reason == "stands for a row" and theirs["good"].recv() == "go"
    with pytest.raises(EOFError):  # let go
        theirs["good"].recv()
    assert rows[1].status == rows[2].status == "failed" and "not ready within" in rows[2].reason
    assert rows[3].status == "not available"
