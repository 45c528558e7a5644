"""Two processes train as one does; a lost one costs a line and no work. As users call it, over gloo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robuq_bench.files import read_json
from robuq_bench.models import checkpoint
from robuq_bench.train.distributed import ALONE, World

SHORT = "train.steps=12,train.save_every=3,train.micro_batch=16,train.checkpointing=true"


def command(folder: Path, changes: str = SHORT, processes: int | None = 2) -> list[str]:
    launched = ["launch", "--processes", str(processes), "--"] if processes else []
    options = {"preset": "smoke", "set": changes, "recipe": "full_precision", "variant": "W32A32"}
    options |= {"model": folder / "model.safetensors", "curve": folder / "curve.json", "state": folder / "state"}
    pairs = (text for name, value in options.items() for text in (f"--{name}", str(value)))
    return [sys.executable, "-m", "robuq_bench.cli", *launched, "train", *pairs]


def run(root: Path, *arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments, **options), cwd=root, capture_output=True, text=True)


def said(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("robuq-bench:")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """One process, the whole batch at a time."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(Path(__file__).parents[2], folder, SHORT.replace("micro_batch=16", "micro_batch=null"), processes=None)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_and_micro_batches_give_the_curve_of_one(alone, tmp_path, in_root):
    done = run(in_root, tmp_path)
    assert done.returncode == 0, done.stderr
    mine, theirs = (read_json(folder / "curve.json") for folder in (tmp_path, alone))
    np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-4)
    assert mine["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=1e-3)
    assert (mine["provenance"]["processes"], theirs["provenance"]["processes"]) == (2, 1)
    ours, _ = checkpoint.load(tmp_path / "model.safetensors", "trained")
    expected, _ = checkpoint.load(alone / "model.safetensors", "trained")
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-2, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "model.safetensors"]


def process_of_rank(rank: int, folder: Path) -> int | None:
    """Id of the process of that rank among those that work in `folder`."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment and str(folder).encode() in (place / "cmdline").read_bytes():
                return int(place.name)
        except OSError:
            continue
    return None


def test_a_lost_process_is_one_line_and_the_same_command_goes_on(alone, tmp_path, in_root):
    steps = SHORT.replace("steps=12", "steps=400")
    process = subprocess.Popen(
        command(tmp_path, steps), cwd=in_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob("state/step*.pt")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process_of_rank(1, tmp_path), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if line.startswith("robuq-bench:")]
    assert process.returncode == 2 and "Traceback" not in errors
    assert "run the same command again" in lines[-1] and "lost" in lines[-1]
    kept = {path.name for path in tmp_path.glob("state/step*.pt")}
    assert kept and not (tmp_path / "model.safetensors").exists()
    done = run(in_root, tmp_path, steps.replace("steps=400", "steps=401"))
    assert done.returncode == 0, "another plan starts afresh"
    assert len(read_json(tmp_path / "curve.json")["losses"]) == 401


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, in_root):
    done = run(in_root, tmp_path, SHORT + ",train.batch=33")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said(done) == ["robuq-bench: batch 33 is not a multiple of 2, the number of processes"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "2", "--", "table"], "give one of train, sample, latents"),
        (["--processes", "2"], "give one of"),
        (["--processes", "0", "--", "train"], "--processes 0"),
    ],
)
def test_mistakes_of_launching(arguments, words, capsys):
    from robuq_bench import cli

    assert cli.main(["launch", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_shares_cover_all_once():
    parts = [World(rank, 4).part(12) for rank in range(4)]
    assert [list(range(12)[part]) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert ALONE.part(5) == slice(0, 5) and ALONE.leads and not World(1, 2).leads
