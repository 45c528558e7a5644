"""The plan of kernel measurements, with the kernels' references in their place: no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch
from test_measure_engine_bounds import rates

from robuq_bench.engine.kernels import packing, reference
from robuq_bench.files import write_json
from robuq_bench.measure import engine_bounds as bounds
from robuq_bench.measure import engine_kernels as kernels

TIMES = {"us": 2.0, "us_p20": 1.0, "us_p80": 3.0, "us_min": 1.0}


@pytest.fixture
def on_cpu(monkeypatch):
    """References for kernels, one call for a timing, 60 seconds from one look at the clock to the next."""
    clock = iter(range(0, 10**6, 60))

    def multiply(x, weight, *, out, sums=None, **epilogue):
        assert (sums is None) == (weight.next_down is None)
        out.copy_(reference.gemm_reference(x, weight, **epilogue))
        if sums is not None:
            sums += packing.pack_sums(reference.sums_reference(out, weight.next_down).round().int())
        return out

    def quantise(x, rotation, bits, *, down=None, out=None, **given):
        made = reference.rotate_quantize_reference(x, rotation, bits, **given)
        return packing.pack_activation(made["codes"], bits, torch.ones(len(x)))

    def refuse(weight):
        raise kernels.BenchError("no Triton here")

    def times(calls):
        calls[0]()
        return TIMES

    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    monkeypatch.setattr(kernels, "gemm", multiply)
    monkeypatch.setattr(kernels.disagreement, "__defaults__", (multiply,))
    monkeypatch.setattr(
        kernels, "rotate_quantize", lambda *given, down=None, **more: quantise(*given, down=down, **more)
    )
    monkeypatch.setattr(kernels, "roundings", lambda *of, **given: {})
    monkeypatch.setattr(kernels, "int8_weight", refuse)
    monkeypatch.setattr(kernels, "tile_for", lambda *shape: "a tile")
    monkeypatch.setattr(kernels, "graph_times", times)
    monkeypatch.setattr(kernels, "sets", lambda count: 2)
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(kernels.jit, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")


RATES = rates(b1=1e15, bf16=1e14, e4m3=2e14, s8=2e14)


def every(m, seconds, have=None):
    return list(kernels.measure(["quick"], m, RATES, seconds, have))


def test_each_linear_has_its_libraries_bits_and_epilogue(on_cpu):
    (record,) = every([64], 10_000)
    plain = ["torch.mm bf16", "torch._scaled_mm fp8", "torch._int_mm int8"]
    own = [f"W1.58A{bits}" for bits in (1, 2, 3, 4)]
    for shape, (n, k), end in (
        ("qkv", (384, 128), ""),
        ("proj", (128, 128), " gate"),
        ("fc1", (512, 128), " gelu"),
        ("fc2", (128, 512), " gate"),
    ):
        rows = [row for row in record.rows if row.shape == shape]
        expected = own if not end else [name + e for name in own for e in ("", end)]
        assert [row.kernel for row in rows] == plain + expected
        assert {(row.n, row.k, row.m) for row in rows} == {(n, k, 64)}
        begun = {"fc1": {"feeds": True}, "fc2": {"fed": True}}.get(shape)
        if begun:
            bound = bounds.ternary_product(64, n, k, 2, int(shape == "fc2"), RATES, **begun)
            assert [row.bound for row in rows if row.kernel == f"W1.58A2{end}"] == [bound]
        assert all(row.relative_error < 3e-3 for row in rows if row.bits) and {row.over_bf16 for row in rows} == {1.0}
    assert {row.what.split()[0] for row in record.missing} == {"INT8"}
    quantised = [row for row in record.rows if row.kind == "row-wise" and row.kernel != "copy"]
    assert len(quantised) == 2 * 5 + 4 and all(row.wrong_codes == 0 for row in quantised)
    assert {row.shape for row in quantised if "rank 16" not in row.kernel and row.bits != 2} == {"signed 512"}


def test_a_limit_leaves_the_rest_named(on_cpu):
    records = every([64, 128, 256], 100)
    assert len(records) == 2, "looks at 60 s and 120 s"
    assert {row.m for row in records[0].rows} == {64} and {row.m for row in records[1].rows} == {64, 128}
    left = [item for item in records[1].missing if "--seconds" in item.reason]
    assert [item.what for item in left] == ["kernels of quick, M = 256"]
    assert not [item for item in records[0].missing if "--seconds" in item.reason]


@pytest.fixture
def half(on_cpu, tmp_path):
    """A file of a run that its limit ended after the first of two M."""
    write_json(tmp_path / "kernels.json", every([64, 128], 50)[-1].model_dump(mode="json"))
    return tmp_path / "kernels.json"


def test_a_run_goes_on_where_it_stopped(half):
    have = kernels.kept(half, RATES)
    assert (
        {row.m for row in have.rows} == {64} and have.missing and {m.what.split()[0] for m in have.missing} == {"INT8"}
    )
    (record,) = every([64, 128], 10_000, have)
    assert record.rows[: len(have.rows)] == have.rows and {row.m for row in record.rows[len(have.rows) :]} == {128}
    assert len(record.rows) == 2 * len(have.rows)
    assert [again.rows for again in every([64, 128], 10_000, record)] == [record.rows]


def test_other_code_or_other_rates_begin_anew(half, monkeypatch):
    assert kernels.kept(half.with_name("none.json"), RATES) is None
    assert kernels.kept(half, rates(b1=2e15, bf16=1e14, e4m3=2e14, s8=2e14)) is None
    monkeypatch.setattr(kernels.provenance, "code_digest", lambda module: "other")
    assert kernels.kept(half, RATES) is None


def test_a_kernel_that_is_wrong_is_not_timed(on_cpu, monkeypatch, refused):
    exact = kernels.gemm
    monkeypatch.setattr(
        kernels.disagreement, "__defaults__", (lambda *given, **more: exact(*given, **more).mul_(1.01),)
    )
    refused(lambda: every([64], 100), "disagrees with float64", "m=64", "n=384")
