"""What fake quantisation costs in training."""

import json

from robuq_bench import cli


def test_each_variant_is_set_against_full_precision(in_root, tmp_path, monkeypatch):
    out = tmp_path / "cost.json"
    arguments = ["--size", "quick", "--batch", "2", "--repeats", "2", "--variant", "robuq_uniform/W1.58A2"]
    assert cli.main(["step-cost", *arguments, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    full, quantised = record["rows"]
    assert (full["row"], full["ratio"]) == ("full_precision/W32A32", 1.0)
    assert quantised["ratio"] == quantised["median_ms"] / full["median_ms"]
    assert full["p20_ms"] <= full["median_ms"] <= full["p80_ms"]
    assert record["autocast"] is None and not record["compiled"]


def test_an_unknown_size_is_one_line(in_root, tmp_path, capsys):
    assert cli.main(["step-cost", "--size", "XL/3", "--batch", "1", "--out", str(tmp_path / "x.json")]) == 2
    assert "unknown size 'XL/3'; did you mean 'XL/2'?" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
