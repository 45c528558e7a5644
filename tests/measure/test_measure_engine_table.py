"""The plan of whole-forward rows: order, resuming, limits; methods and inputs. No GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

from robuq_bench.config.preset import DiT
from robuq_bench.files import read_json, write_json
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure import engine_table as table
from robuq_bench.measure import engine_worker as worker
from robuq_bench.measure.engine_methods import METHODS, MIXED, SIZES
from robuq_bench.measure.engine_records import Check, Forward, ForwardTable, Hardware, Times
from robuq_bench.models import dit


def done(key: tuple[str, str, int], ms: float = 1.0) -> Forward:
    model, method, batch = key
    times = Times(median_ms=ms, p20_ms=ms, p80_ms=ms, min_ms=ms, repeats=5)
    check = Check(error=0, bound=1, against="x")
    return Forward(model=model, method=method, batch=batch, status="ok", times=times, check=check)


def test_important_rows_come_first():
    keys = table.keys(list(SIZES), list(METHODS), None)
    assert len(keys) == len(set(keys))
    assert keys[:4] == [("XL/2", m, b) for m in ("W1.58A2", "bf16 compiled") for b in (2, 64)]
    assert {method for _, method, _ in keys} == set(METHODS) and {size for size, _, _ in keys} == set(SIZES)


def test_sizes_methods_and_batches_are_chosen(refused):
    keys = table.keys(["S/2"], ["W1.58A2", "fp32 eager"], [3])
    assert keys == [("S/2", "W1.58A2", 3), ("S/2", "fp32 eager", 3)]
    refused(lambda: table.keys(["S/2"], ["fp8 compiled"], None), "S/2", "fp8 compiled", "XL/2")


def test_every_row_is_written_as_it_comes_and_the_rest_is_named():
    keys = [("S/2", "a", 1), ("S/2", "b", 1), ("S/2", "c", 1)]
    written = []
    rows = table.collect(keys, {}, lambda todo: (done(key) for key in todo[:2]), written.append, seconds=7)
    assert [[row.status for row in version] for version in written] == [
        ["ok", "not reached", "not reached"],
        ["ok", "ok", "not reached"],
    ]
    assert rows == written[-1] and "7 s (--seconds)" in rows[2].reason


def test_what_is_there_is_not_measured_again():
    keys = [("S/2", "a", 1), ("S/2", "b", 1)]
    asked = []

    def measure(todo):
        asked.extend(todo)
        return (done(key, 2.0) for key in todo)

    rows = table.collect(keys, {keys[0]: done(keys[0])}, measure, lambda rows: None, seconds=7)
    assert asked == keys[1:] and [row.times.median_ms for row in rows] == [1.0, 2.0]


def test_as_many_get_ready_at_once_as_memory_and_cores_hold():
    assert table.side_by_side(int(80e9), 32) == 17
    assert table.side_by_side(int(80e9), 4) == 4
    assert table.side_by_side(int(1e9), 32) == 1


def test_what_is_tuned_for_minutes_keeps_nothing_else_waiting(tmp_path):
    tasks = [worker.Task(*key, tmp_path) for key in table.keys(list(SIZES), list(METHODS), None)]
    parts = list(table.batched(tasks, 18))
    assert [task for part in parts for task in part] == tasks and max(map(len, parts)) == 18
    assert [{METHODS[task.method].tuned for task in part} for part in parts[-2:]] == [{False}, {True}]


def test_no_wave_begins_after_the_limit(tmp_path, monkeypatch):
    begun, clock = [], iter([0.0, 10.0, 20.0, 30.0])

    def wave(tasks, models, plan, patience):
        begun.append((len(tasks), [task.expected.name for task in models], patience))
        return [done(task.key) for task in tasks]

    monkeypatch.setattr(table.waves, "wave", wave)
    monkeypatch.setattr(table, "side_by_side", lambda free, cores: 2)
    monkeypatch.setattr(table, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    keys = [("XL/2", "bf16 eager", batch) for batch in (1, 2, 16, 64, 256)]
    rows = list(table._waves(keys, worker.Plan((1,), 5, 1.0), deadline=15.0))
    assert [row.key for row in rows] == keys[:4]
    assert [count for count, _, _ in begun] == [2, 2] and begun[0][2] == table.READY_SECONDS
    assert [names for _, names, _ in begun] == [["XL2-fp32.outputs.safetensors"], []], "a reference is made once"


def test_weights_are_the_same_in_every_precision(monkeypatch):
    monkeypatch.setattr(methods, "DEVICE", "cpu")
    spec = DiT(width=64, depth=1, heads=2, patch=2)
    full, half = (methods.diffusers_model(spec, kind) for kind in (torch.float32, torch.bfloat16))
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(full.parameters(), half.parameters(), strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.bfloat16) and torch.equal(one, other.float())
    weight = full.transformer_blocks[0].ff.net[0].proj.weight
    assert weight.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05), "diffusers' own initialisation"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A table on disk, of this code and a GPU called "A"."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A")
    sizes = {"multiprocessors": 1, "l2_bytes": 1, "memory_bytes": 1, "capability": "9.0", "cuda": "13", "torch": "2"}
    blank = dict.fromkeys(("driver", "triton", "max_sm_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w"))
    late = Forward(model="S/2", method="late", batch=1, status="not reached", reason="time")
    broken = Forward(model="S/2", method="broken", batch=1, status="failed", reason="crash")
    record = ForwardTable(
        rows=(done(("S/2", "a", 1)), late, broken),
        parameters={},
        hardware=Hardware(name="A", **sizes, **blank),
        code=table.code(),
        seconds=1,
        provenance={},
    )
    path = tmp_path / "table.json"
    write_json(path, record.model_dump(mode="json"))
    return path


def test_rows_of_the_same_code_and_gpu_are_kept(earlier):
    assert [row.method for row in table.kept(earlier).values()] == ["a"]
    assert table.kept(earlier.with_name("none.json")) == {}


def test_rows_of_other_code_or_another_gpu_are_not(earlier, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "B")
    assert table.kept(earlier) == {}
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A")
    write_json(earlier, read_json(earlier) | {"code": "other"})
    assert table.kept(earlier) == {}


def test_mixed_bits_average_two_by_macs():
    spec = SIZES["XL/2"]
    bits = methods.layer_bits(spec, MIXED, 4)
    assert methods.average_bits(bits) == 2.0
    means = {kind: sum(bits[f"blocks.{i}.{kind}"] for i in range(28)) / 28 for kind in MIXED}
    published = {"qkv": 2.21, "proj": 2.75, "fc1": 2.0, "fc2": 1.64}
    assert all(abs(means[kind] - published[kind]) < 0.04 for kind in published)
    assert len({bits[f"blocks.{i}.fc2"] for i in range(28)}) == 2
    assert bits["blocks.0.adaln"] == 4 and len(bits) == 28 * 5
    assert methods.average_bits(methods.layer_bits(spec, {**MIXED, "fc1": 4.0}, 4)) > 2.5


def test_parameters_are_counted_as_the_models_have_them():
    spec = SIZES["S/2"]
    ours = sum(p.numel() for p in dit.build(spec, methods.SHAPE).parameters())
    assert methods.parameters(spec)["tied"] == ours
    assert methods.parameters(SIZES["XL/2"])["untied"] == 749_808_016


def test_a_smaller_batch_is_the_beginning_of_a_larger_one(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    small, large, other = worker.inputs(2), worker.inputs(64), worker.inputs(2, turn=1)
    for few, many, different in zip(small, large, other, strict=True):
        assert torch.equal(few, many[:2]) and not torch.equal(few, different)


def test_both_ends_of_a_batch_are_compared():
    assert worker.compared(2) == [0, 1]
    assert worker.compared(6) == [0, 1, 2, 3, 4, 5]
    assert worker.compared(64) == [0, 1, 2, 3, 60, 61, 62, 63]
