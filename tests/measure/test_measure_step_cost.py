"""What fake quantisation costs in training."""

import json
import subprocess
import sys

import pytest

from robuq_bench import cli
from robuq_bench.config.preset import load_preset
from robuq_bench.measure import step_cost


def test_each_variant_is_set_against_full_precision(in_root, tmp_path, monkeypatch):
    out = tmp_path / "cost.json"
    arguments = ["--size", "quick", "--batch", "2", "--repeats", "2", "--variant", "robuq_uniform/W1.58A2"]
    assert cli.main(["step-cost", *arguments, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    full, quantised = record["rows"]
    assert (full["row"], full["ratio"]) == ("full_precision/W32A32", 1.0)
    assert quantised["ratio"] == quantised["median_ms"] / full["median_ms"]
    assert full["p20_ms"] <= full["median_ms"] <= full["p80_ms"]
    assert record["autocast"] is None and record["blocks"] == "plain"
    share = record["model_flops"] / (full["median_ms"] / 1e3) / record["peak_flops"]
    assert full["model_flop_utilisation"] == pytest.approx(share) and 0 < share < 1
    assert full["issued_ms"] is None and full["issued_ratio"] is None, "CUDA graphs are of a GPU"
    assert full["graphs"] == full["graph_breaks"] == 0, "nothing is compiled on a CPU"


def test_processes_share_each_step(in_root, tmp_path, warm):
    out = tmp_path / "cost.json"
    options = ["--size", "quick", "--batch", "4", "--repeats", "2", "--variant", "plain_qat/W1.58A4", "--out", str(out)]
    launched = [sys.executable, "-m", "robuq_bench.cli", "launch", "--processes", "2", "--", "step-cost"]
    done = subprocess.run([*launched, *options], env=warm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["batch"] == 4 and record["provenance"]["processes"] == 2
    done = subprocess.run([*launched, *options, "--batch", "3"], env=warm, capture_output=True, text=True)
    assert done.returncode == 2 and "batch 3 is not a multiple of 2, the number of processes" in done.stderr


def test_operations_are_those_of_the_dit_paper():
    """DiT-S/2 6.06 and DiT-XL/2 118.64 multiply-adds an image, in 10^9 (arXiv 2212.09748, table 4)."""
    for name, gigas in (("S/2", 6.06), ("XL/2", 118.64)):
        assert step_cost.forward_flops(step_cost.SIZES[name]) / 2e9 == pytest.approx(gigas, rel=0.005)


def test_the_gpu_preset_is_a_size(in_root):
    size, preset = step_cost.size_of("gpu"), load_preset("gpu")
    assert (size.model, size.batch, size.device) == (preset.model, preset.qat.batch, "cuda")
    assert (size.shape.size, size.shape.channels) == (preset.data.size, 3)


def test_an_unknown_size_is_one_line(in_root, tmp_path, capsys):
    assert cli.main(["step-cost", "--size", "XL/3", "--batch", "1", "--out", str(tmp_path / "x.json")]) == 2
    assert "unknown size 'XL/3'; did you mean 'XL/2'?" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
