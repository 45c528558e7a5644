"""`reproduce_study`: what it plans for the presets, and what it says of wrong options. Nothing is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robuq_bench.allocate.ablations import study_rows
from robuq_bench.config.ablation import load_ablations
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import full_rows

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
    jobs = planned(dry_run(project, "preset=smoke", "set=ablations.attention=[W1.58A2,W1.58A4]"))
    rows = {"full table": 24, "attention in full precision at 2 and 4 bits": 2}
    assert jobs["ablate"] == jobs["collect"] == 1
    assert jobs["train"] == jobs["evaluate"] == jobs["measure"] == sum(rows.values())


def test_the_gpu_preset_trains_headline_rows_three_times(project, in_root):
    jobs = planned(dry_run(project, "preset=gpu", "set=data.path=/nowhere", "gpus=2"))
    preset = load_preset("gpu")
    rows = {*study_rows(preset, load_ablations(), full_rows())}
    thrice = rows & {*preset.rows, *preset.seeded} - {"full_precision/W32A32"}
    assert len(thrice) == len(preset.rows) - 1 + len(preset.seeded)
    more = sum(len(seeds) for seeds in preset.more_seeds.values())
    assert jobs["train"] == 3 * len(thrice) + len(rows - thrice) + more and jobs["reference"] == 1
    assert jobs["train"] == jobs["export"] == jobs["sample"] == jobs["evaluate"]
