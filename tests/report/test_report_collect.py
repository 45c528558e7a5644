"""What a study leaves behind: the small files, and the GPU time of its jobs."""

import json

import pytest

from robuq_bench import cli
from robuq_bench.report.collect_stage import spent, summary


def record(device="cpu", **facts) -> dict:
    return {"device": device, **facts}


def write(path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def results(tmp_path):
    """Two runs on two GPUs, and a third that took none."""
    folder = tmp_path / "results"
    gpu, other = record("GPU A", device_seconds=30.0), record("GPU B", device_seconds=6.0)
    for place in ("robuq/W1.58A2/seed0", "robuq,low_rank.rank=4/W1.58A2/seed1"):
        write(folder / place / "train.json", {"provenance": gpu})
        write(folder / place / "metrics.json", {"provenance": other, "sampled": other})
    write(folder / "robuq/W1.58A2/seed0/profile.json", {"provenance": gpu})
    write(folder / "minmax_ptq/W4A4/seed0/train.json", {"provenance": record(device_seconds=0.0)})
    write(folder / "reference/floor.json", {"provenance": gpu, "scores": {}})
    for name in (
        "table.json",
        "table_full.json",
        "study.json",
        "ablations/rotation.json",
        "inspect/robuq/W1.58A2/s.json",
    ):
        write(folder / name, {"name": name})
    (folder / "table.md").write_text("| a |")
    (folder / "robuq/W1.58A2/seed0/model.safetensors").write_bytes(b"large")
    return folder


def test_seconds_by_stage(results):
    cost = spent(results)
    assert cost["seconds"] == {"train": 60.0, "evaluate": 12.0, "sample": 12.0, "profile": 30.0, "reference": 30.0}
    assert cost["jobs"] == {"train": 2, "evaluate": 2, "sample": 2, "profile": 1, "reference": 1}
    assert cost["gpus"] == ["GPU A", "GPU B"] and cost["gpu_minutes"] == 2.4


def test_a_study_on_a_cpu_costs_no_gpu_time(results):
    assert spent(results / "minmax_ptq") == {"seconds": {}, "jobs": {}, "gpus": [], "gpu_minutes": 0.0}
    assert summary(spent(results / "minmax_ptq")) == "GPU minutes: 0.0"


def test_small_files_are_kept_and_weights_are_not(results, tmp_path, capsys):
    out = tmp_path / "collected"
    assert cli.main(["collect", "--results", str(results), "--out", str(out)]) == 0
    kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert kept == {
        *("table.json", "table_full.json", "study.json", "table.md", "cost.json", "reference/floor.json"),
        *("ablations/rotation.json", "inspect/robuq/W1.58A2/s.json"),
    }
    assert json.loads((out / "study.json").read_text()) == {"name": "study.json"}
    printed = capsys.readouterr().out
    assert printed.startswith("GPU minutes: 2.4 (train 1.0, ") and printed.endswith("GPU A, GPU B\n")


def test_nothing_to_collect(tmp_path, capsys):
    assert cli.main(["collect", "--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no tables or ablations here; run the study first" in capsys.readouterr().err
