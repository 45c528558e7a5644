"""`reproduce_study`: what it plans for the presets, and what it says of wrong options. Nothing is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    for name in ("workflows", "profiles", "config", "baselines"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "Snakefile", root)
    shutil.copytree(ROOT / "results/reference/engine", root / "results/reference/engine")
    return root


def dry_run(project: Path, *config: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "-n", "--config", *config, "--", "reproduce_study"]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def planned(done: subprocess.CompletedProcess) -> dict[str, int]:
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule: int(n) for rule, n in re.findall(r"^(\w+)\s+(\d+)$", done.stdout + done.stderr, re.MULTILINE)}


def test_the_ablations_that_the_preset_names_and_no_others(project):
    few, more = (
        planned(dry_run(project, "preset=smoke", f"set=ablations.attention=[{variants}]"))
        for variants in ("W1.58A2", "W1.58A2,W1.58A4")
    )
    assert few["ablate"] == more["ablate"] == few["collect"] == 1
    rows = {"full table": 24, "attention in full precision at 2 bits": 1}
    assert few["train"] == few["evaluate"] == few["measure"] == sum(rows.values())
    assert more["train"] == few["train"] + 1


def test_the_gpu_preset_trains_headline_rows_three_times(project):
    jobs = planned(dry_run(project, "preset=gpu", "set=data.path=/nowhere,ablations={}", "gpus=2"))
    headline = re.findall(r"^  - (\S+)", (ROOT / "config/gpu.yaml").read_text(), re.M)
    assert jobs["train"] >= 3 * (len(headline) - 1) + 1 and jobs["reference"] == 1
    assert jobs["train"] == jobs["export"] == jobs["sample"] == jobs["evaluate"]
