"""The presets of the paper's scale: the whole DAG is planned, and the stand-in really runs, shared by two processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import standins
import yaml
from test_workflow import COPIED, ROOT, planned, snakemake

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]
STANDIN = ("--config", "preset=paper_standin")
BROUGHT = ("VIRTUAL_imagenet256_labeled.npz", "VIRTUAL_imagenet512.npz", "ffhq256.npz")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with stand-ins for what a user brings."""
    root = tmp_path_factory.mktemp("project")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    standins.main(root / "standin")
    return root


@pytest.fixture(scope="module")
def done(project: Path, warm) -> Path:
    """The stand-in preset, run once; every job that can be shared runs in two processes."""
    made = snakemake(project, *STANDIN, "devices_per_job=2", "--", "reproduce_table", "anchors", within=warm)
    assert made.returncode == 0, made.stdout + made.stderr
    return project / "results/paper_standin"


@pytest.mark.parametrize("name", ["paper", "paper_512", "paper_ffhq"])
def test_the_whole_dag_is_planned(project, name):
    preset = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    reference = project / preset["evaluate"]["reference"]
    reference.parent.mkdir(exist_ok=True)
    reference.touch()
    jobs = planned(project, "--config", f"preset={name}", "devices_per_job=8")
    rows = len(preset["rows"])
    assert jobs["encode"] == jobs["reference"] == 1
    assert {jobs[rule] for rule in ("train", "export", "sample", "evaluate", "measure")} == {rows}
    assert jobs["table"] == jobs["page"] == 1
    if preset.get("anchors"):
        first = planned(project, "--config", f"preset={name}", "--", "anchors")
        assert first["train"] == first["sample"] == 1 and "profile" not in first, "full precision alone"


def test_processes_that_share_a_job_have_their_threads_each(project):
    found = snakemake(
        project, "--dry-run", "--cores", "99", "--config", "preset=paper", "devices_per_job=8", "--", "latents"
    )
    assert found.returncode == 0 and "threads: 64" in found.stdout + found.stderr


def test_the_stand_in_runs_from_photos_to_page(done, project):
    rows = json.loads((done / "table.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    full, robuq = (
        json.loads((done / f"{row}/seed0/train.json").read_text()) for row in ("full_precision/W32A32", "robuq/W1.58A2")
    )
    assert full["losses"] == [] and len(full["pretrained"]) == 64, "read, not trained"
    assert len(robuq["losses"]) == 20 and robuq["provenance"]["processes"] == 2
    assert robuq["held_out_loss"] < robuq["trivial_loss"]
    samples = np.load(done / "robuq/W1.58A2/seed0/samples.npz")
    assert samples["arr_0"].shape == (48, 32, 32, 3) and samples["arr_0"].std() > 5
    assert samples["arr_1"].tolist() == [k % 12 for k in range(48)]
    page = (project / "reports/paper_standin/index.html").read_text()
    assert "Is the protocol right?" in page and "features of Pixels" in page
    assert json.loads((done / "anchors.json").read_text())["verdict"] == "not comparable"
    assert not [*(project / "state").rglob("*.npy"), *(project / "state").rglob("*.pt")]


def test_nothing_is_left_to_do_and_sharing_is_no_reason_to_run_again(done, project):
    assert planned(project, *STANDIN) == {}


def test_a_reference_that_is_missing_is_one_line(done, project):
    """Though there are scores, against another one."""
    run = snakemake(project, *STANDIN, "set=evaluate.reference=gone.npz", "--", "robuq_W1.58A2")
    lines = [line for line in run.stderr.splitlines() if "robuq-bench:" in line]
    assert run.returncode != 0 and lines == ["robuq-bench: gone.npz: no such reference"]


def test_fewer_steps_sample_again_but_encode_and_train_nothing(done, project):
    jobs = planned(project, *STANDIN, "set=sample.steps=4")
    assert jobs["sample"] == 2 and not {"encode", "train", "profile", "reference"} & jobs.keys()


def test_other_photos_are_encoded_and_trained_on_again(done, project):
    jobs = planned(project, *STANDIN, "set=data.size=64,latents.cache=other")
    assert jobs["encode"] == 1 and jobs["train"] == 2


def test_another_protocol_takes_the_trained_models(done, project):
    (project / "config/other.yaml").write_text("title: T\ntrained_by: paper_standin\nsample: {steps: 3}\n")
    jobs = planned(project, "--config", "preset=other")
    assert jobs["adopt"] == jobs["sample"] == jobs["evaluate"] == 2
    assert not {"train", "encode", "profile", "allocate"} & jobs.keys(), "all trained already"
