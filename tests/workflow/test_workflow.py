"""The real snakemake, end to end, on a preset of seconds in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "workflows", "profiles", "config", "baselines", "robuq_bench")
pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]


def snakemake(project: Path, *arguments: str, within: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess:
    """Run snakemake in `project` with the project's own copy of the package. within: its environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**within, "PYTHONPATH": str(project), "PATH": path}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def planned(project: Path, *arguments: str) -> dict[str, int]:
    """Jobs by rule of a dry run."""
    done = snakemake(project, "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = dict(re.findall(r"^(\w[\w.]*)\s+(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    return {rule: int(count) for rule, count in jobs.items() if rule != "total"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Path:
    """A copy of the project with the preset `tiny`, run once."""
    root = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    tiny = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    tiny["train"] |= {"steps": 20, "warmup": 2}
    tiny["qat"] |= {"steps": 4, "warmup": 1}
    tiny["sample"] |= {"n": 50, "steps": 2}
    tiny["rows"] = ["full_precision/W32A32", "robuq_uniform/W1.58A2"]
    (root / "config/tiny.yaml").write_text(yaml.safe_dump(tiny))
    done = snakemake(root, "--config", "preset=tiny", "--", "reproduce_table", within=warm)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_one_command_makes_table_and_page(project: Path) -> None:
    results = project / "results/tiny"
    rows = json.loads((results / "table.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all((results / f"table.{suffix}").stat().st_size for suffix in ("csv", "md", "tex"))
    assert "<html" in (project / "reports/tiny/index.html").read_text()
    assert not list((project / "state").rglob("*.pt")), "resumable state is cleared once a run is complete"


def test_nothing_left_to_do(project: Path) -> None:
    assert planned(project, "--config", "preset=tiny") == {}


def test_another_row_costs_that_row_alone(project: Path) -> None:
    jobs = planned(project, "--config", "preset=tiny", "--", "baseline_W1.58A2")
    assert jobs == dict.fromkeys(("train", "export", "sample", "evaluate", "measure", "baseline_W1.58A2"), 1)


def test_a_sweep_runs_the_values_that_have_not_been_run(project: Path) -> None:
    """Rank 16 is the recipe's own, and that row exists."""
    swept = "sweep=robuq_uniform,low_rank.rank=16|4/W1.58A2"
    jobs = planned(project, "--config", "preset=tiny", swept, "--", "sweep")
    once = ("train", "export", "sample", "evaluate", "measure", "ablate", "ablation_page", "sweep")
    assert jobs == dict.fromkeys(once, 1)


def test_one_setting_of_an_ablation_by_name(project: Path) -> None:
    jobs = planned(project, "--config", "preset=tiny", "--", "ablation_rotation_none")
    assert jobs == dict.fromkeys(("train", "export", "sample", "evaluate", "measure", "ablation_rotation_none"), 1)


def test_new_guidance_samples_again_but_trains_nothing(project: Path) -> None:
    jobs = planned(project, "--config", "preset=tiny", "set=sample.guidance=2.0")
    assert jobs == {"sample": 2, "evaluate": 2, "table": 1, "page": 1, "reproduce_table": 1}


def test_a_changed_recipe_trains_its_rows_alone(project: Path) -> None:
    recipe = project / "baselines/robuq_uniform.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("signs: true", "signs: false"))
    jobs = planned(project, "--config", "preset=tiny")
    recipe.write_text(before.replace("title: ", "title: The "))
    words = planned(project, "--config", "preset=tiny")
    recipe.write_text(before)
    assert jobs["train"] == jobs["sample"] == 1 and "reference" not in jobs
    assert words == {"table": 1, "page": 1, "reproduce_table": 1}, "a new title makes a new table, no training"


@pytest.mark.parametrize(
    ("module", "again", "spared"),
    [
        ("sample/generate.py", {"sample": 2, "evaluate": 2}, {"train", "export", "measure", "reference"}),
        ("measure/latency.py", {"measure": 2}, {"train", "export", "sample", "evaluate", "reference"}),
        ("metrics/frechet.py", {"evaluate": 2, "reference": 1}, {"train", "export", "sample", "measure"}),
        ("train/loop.py", {"train": 2, "sample": 2, "evaluate": 2}, set()),
    ],
)
def test_editing_a_module_runs_its_stage_and_what_follows(
    project: Path, module: str, again: dict[str, int], spared: set[str]
) -> None:
    path = project / "robuq_bench" / module
    before = path.read_text()
    path.write_text(before + "\n# edited\n")
    jobs = planned(project, "--config", "preset=tiny")
    path.write_text(before)
    assert {rule: jobs.get(rule) for rule in again} == again
    assert not spared & jobs.keys()


def test_snakemake_report_builds(project: Path) -> None:
    done = snakemake(project, "--config", "preset=tiny", "--report", "report.html", "--", "reproduce_table")
    assert done.returncode == 0, done.stderr
    assert (project / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "preset=quik"], "unknown preset 'quik'; did you mean 'quick'?"),
        (["--config", "preset=tiny", "set=sample.stps=3"], "unknown key 'sample.stps'; did you mean 'sample.steps'?"),
        (["results/tiny/robuqq/W1.58A2/seed0/metrics.json"], "unknown recipe 'robuqq'; did you mean 'robuq'?"),
        (["results/tiny/robuq,low_rank.rank=48/W1.58A2/seed0/metrics.json"], "the largest rank is 47"),
        (["results/tiny/robuq,allocation.cost=latency/W1.58A2/seed0/bits.json"], "latency table"),
        (["--config", "preset=tiny", "sweep=robuq,low_rnk.rank=4|8/W1.58A2", "--", "sweep"], "mean 'low_rank'?"),
        (["--config", "preset=tiny", "--", "sweep"], "sweep: say what to sweep"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(project: Path, arguments: list[str], expected: str) -> None:
    done = snakemake(project, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("robuq-bench:")]
    assert done.returncode != 0
    assert len(lines) == 1 and expected in lines[0]
    assert "Traceback" not in done.stderr + done.stdout


def test_lint_and_menu(project: Path) -> None:
    assert snakemake(project, "--lint").returncode == 0
    menu = snakemake(project, "--list-rules").stdout
    for target in ("reproduce_table", "report", "robuq_W1.58A2", "ablation_quantizer_error", "ablation_rotation"):
        assert re.search(rf"^{re.escape(target)} \(.+\)$", menu, re.MULTILINE), target
