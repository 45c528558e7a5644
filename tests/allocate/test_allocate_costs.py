"""What a bit costs: known answers for DiT-XL/2, units, budgets, and the engine's latency table."""

import json
from math import log2
from pathlib import Path

import numpy as np
import pytest

from robuq_bench.allocate.allocation import PAPER_AVERAGES
from robuq_bench.allocate.costs import (
    LATENCY_MAKER,
    LATENCY_TABLES,
    LatencyTable,
    Linear,
    costs,
    latency_path,
    read_latency_table,
)
from robuq_bench.allocate.profile import shapes

SIDES = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}


def block(index: int, width: int, tokens: int) -> list[Linear]:
    return [Linear(f"blocks.{index}.{kind}", n * width, k * width, tokens) for kind, (n, k) in SIDES.items()]


XL = [linear for index in range(28) for linear in block(index, 1152, 256)]


def test_macs_of_dit_xl_2():
    assert round(sum(linear.macs for linear in XL) / 1e9, 3) == 114.152  # paper-facts 3.1


def test_a_converted_model_has_these_shapes(converted):
    assert shapes(converted("robuq/W1.58A4"), 16) == [*block(0, 48, 16), *block(1, 48, 16)]


@pytest.mark.parametrize(("cost", "first"), [("average_bits", [1, 1, 1, 1]), ("macs", [3, 1, 4, 4])])
def test_costs_are_whole_numbers_reduced(variant, cost, first):
    priced = costs(XL, variant(f"robuq,allocation.cost={cost}/W1.58A2"))
    assert priced.values.dtype == np.int64
    np.testing.assert_array_equal(priced.values, np.tile(np.outer(first, [1, 2, 3, 4]), (28, 1)))
    assert priced.budget == 2 * 28 * sum(first) == priced.values[:, 1].sum()


def test_bitops_count_two_planes_for_a_ternary_weight(variant):
    macs, bitops = (costs(XL, variant(f"robuq,allocation.cost={cost}/W1.58A3")) for cost in ("macs", "bitops"))
    np.testing.assert_array_equal(bitops.values, 2 * macs.values)
    assert bitops.budget == 2 * macs.budget
    four = costs(XL, variant("robuq,allocation.cost=bitops/W4A4"))
    np.testing.assert_array_equal(four.values, 4 * macs.values)


@pytest.mark.parametrize(("name", "plain", "weighted"), [("W1.58A2", 2.15, 1.995), ("W1.58A3", 3.05, 2.85)])
def test_averages_of_the_paper(name, plain, weighted):
    """Weighted by MACs, the published averages by type are the 2.0 of A2 (paper-facts 1.6)."""
    average, macs = PAPER_AVERAGES[name], {linear.name.rpartition(".")[2]: linear.macs for linear in XL}
    assert np.mean(list(average.values())) == pytest.approx(plain, abs=0.005)
    share = sum(average[kind] * macs[kind] for kind in macs) / sum(macs.values())
    assert share == pytest.approx(weighted, abs=0.005)


def microseconds(n: int, k: int, bits: int, m: int) -> float:
    return 1.2345e-3 * m * log2(n * k * bits + 1)


def table(ms=(512, 16384), bits=(1, 2, 3, 4)) -> LatencyTable:
    """As the engine's benchmark writes it: other kernels beside the products."""
    rows = [
        {"kernel": f"W1.58A{b}", "n": n, "k": k, "m": m, "us": microseconds(n, k, b, m), "sets": 3}
        for n, k in {(linear.n, linear.k) for linear in XL}
        for m in ms
        for b in bits
    ]
    others = (
        {"kernel": name, "n": 3456, "k": 1152, "m": 65536, "us": 1.0} for name in ("torch.mm bf16", "W1.58A2 gelu")
    )
    rows += [*others, {"kernel": "copy", "k": 1152, "m": 16384, "us": 1.0, "bytes": 4}]
    return LatencyTable.model_validate({"rows": rows, "provenance": {"device": "H100"}})


def test_latency_is_in_nanoseconds_at_the_largest_common_m(variant):
    measured = table()
    partial = measured.model_copy(update={"rows": (*measured.rows, measured.rows[0].model_copy(update={"m": 32768}))})
    priced = costs(XL, variant("robuq,allocation.cost=latency/W1.58A2"), partial)
    for linear, row in zip(XL, priced.values, strict=True):
        assert list(row) == [round(1000 * microseconds(linear.n, linear.k, bits, 16384)) for bits in (1, 2, 3, 4)]
    assert priced.budget == priced.values[:, 1].sum()
    assert "H100" in priced.unit and "16384" in priced.unit


def test_a_latency_table_of_another_model_is_refused(variant, refused):
    latency = variant("robuq,allocation.cost=latency/W1.58A2")
    refused(lambda: costs(block(0, 48, 16), latency, table()), "n 48", LATENCY_MAKER)
    refused(lambda: costs(XL, latency, table(bits=(2, 3, 4))), "1 bits", LATENCY_MAKER)


def test_a_missing_or_damaged_latency_table_is_refused(tmp_path, refused):
    path = tmp_path / "kernels.json"
    refused(lambda: read_latency_table(str(path)), path, LATENCY_MAKER)
    path.write_text(json.dumps({"rows": [{"kernel": "W1.58A1", "n": 1, "k": 1, "m": 1, "us": 0}], "provenance": {}}))
    refused(lambda: read_latency_table(str(path)), path, "rows.0.us")
    path.write_text("[]")
    refused(lambda: read_latency_table(str(path)), path)


def test_own_measurements_come_before_the_committed_ones(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    own, committed = LATENCY_TABLES
    refused(lambda: read_latency_table(None), own, LATENCY_MAKER)
    for path in (committed, own):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        assert latency_path(None) == path
    assert latency_path("other.json") == Path("other.json")
