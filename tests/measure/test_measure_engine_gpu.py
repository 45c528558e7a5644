"""The engine's measurements on a real GPU, at their smallest."""

from functools import partial

import pytest
import torch

from robuq_bench import cli
from robuq_bench.config.base import build
from robuq_bench.files import read_json
from robuq_bench.measure import engine_kernels
from robuq_bench.measure.engine_modulations import modulation_rows
from robuq_bench.measure.engine_rates import probe
from robuq_bench.measure.engine_records import ForwardTable
from robuq_bench.measure.engine_timing import call_times, graph_times, hardware

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def rates():
    return probe()


def test_rates_are_in_the_order_of_the_hardware(rates):
    assert rates.best("b1") > rates.best("s8") > rates.best("bf16") > 1e13
    assert rates.copy_bytes_per_s > 1e11
    assert all(rate.reason or 300 < rate.clock_mhz < 4000 for rate in rates.rates)
    assert rates.hardware == hardware().model_copy(update={"sm_clock_mhz": rates.hardware.sm_clock_mhz})


def test_twice_the_work_takes_about_twice_as_long():
    small, large = (torch.randn(n, 4096, device="cuda") for n in (4096, 8192))
    weight = torch.randn(4096, 4096, device="cuda")
    one, two = (graph_times([partial(torch.mm, x, weight)]) for x in (small, large))
    assert 1.5 < two["us"] / one["us"] < 2.5
    assert one["us_min"] <= one["us_p20"] <= one["us"] <= one["us_p80"]
    calls = call_times(lambda turn: torch.mm(small, weight), 10, 1.0)
    assert 0.8 < 1e3 * calls.median_ms / one["us"] < 1.5


def test_kernels_agree_and_stay_above_their_bounds(rates):
    (record,) = engine_kernels.measure(["quick"], [512], rates, 600)
    assert {f"W1.58A{bits}" for bits in (1, 2, 3, 4)} <= {row.kernel for row in record.rows}
    assert all(row.share < 1.05 for row in record.rows), "faster than the hardware: a bound or a time is wrong"


def test_modulations_agree(rates):
    assert {row.kernel for row in modulation_rows(rates)} == {"W1.58A4", "torch.mm bf16"}


def test_a_table_of_two_rows(tmp_path, in_root):
    out = tmp_path / "table.json"
    given = ["--size", "S/2", "--method", "W1.58A2", "fp32 eager", "--batch", "2", "--repeats", "5"]
    assert cli.main(["engine-table", *given, "--out", str(out)]) == 0
    table = build(ForwardTable, read_json(out), str(out))
    assert [row.status for row in table.rows] == ["ok", "ok"]
    assert table.rows[0].peak_bytes < table.rows[1].peak_bytes
