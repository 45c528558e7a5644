"""Two processes train as one does; a lost one costs a line and no work. As users call it, over gloo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from robuq_bench.files import read_json
from robuq_bench.models import checkpoint
from robuq_bench.train import distributed
from robuq_bench.train.distributed import ALONE, World

ROOT = Path(__file__).parents[2]
PLAN = "train.steps=100,train.warmup=10,train.save_every=10,train.micro_batch=16,train.checkpointing=true"
AT_ONCE = PLAN.replace("micro_batch=16", "micro_batch=null")


def command(folder: Path, changes: str = PLAN, processes: int | None = 2, **more) -> list[str]:
    launched = ["launch", "--processes", str(processes), "--"] if processes else []
    options = {"preset": "smoke", "set": changes, "recipe": "full_precision", "variant": "W32A32"}
    options |= {
        "model": folder / "model.safetensors",
        "curve": folder / "curve.json",
        "state": folder / "state",
        **more,
    }
    pairs = (text for name, value in options.items() for text in (f"--{name}", str(value)))
    return [sys.executable, "-m", "robuq_bench.cli", *launched, "train", *pairs]


def run(environment: dict[str, str], *arguments, **options) -> subprocess.CompletedProcess:
    line = command(*arguments, **options)
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


def said(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("robuq-bench:")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, warm) -> Path:
    """What two processes that nothing disturbs leave behind."""
    folder = tmp_path_factory.mktemp("pair")
    done = run(warm, folder)
    assert done.returncode == 0, done.stderr
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "model.safetensors", "trained")[0]


def test_two_processes_and_micro_batches_give_the_curve_of_one(pair, tmp_path, warm):
    done = run(warm, tmp_path, AT_ONCE, processes=None)
    assert done.returncode == 0, done.stderr
    mine, theirs = (read_json(folder / "curve.json") for folder in (pair, tmp_path))
    np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-4)
    assert mine["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=1e-3)
    assert (mine["provenance"]["processes"], theirs["provenance"]["processes"]) == (2, 1)
    ours, expected = weights(pair), weights(tmp_path)
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-2, atol=1e-4)
    assert sorted(path.name for path in pair.iterdir()) == ["curve.json", "model.safetensors"]


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


def lose_a_process(line: list[str], folder: Path) -> tuple[int, str]:
    """Run `line`, kill its process of rank 1 once a state is saved in `folder`; how it ended, and what it said."""
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not [*folder.glob("state/step*.pt")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    lost = process_of_rank(1, folder)
    assert lost, "it ended before it could be lost"
    os.kill(lost, signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    return process.returncode, errors


def test_a_lost_process_is_one_line_and_the_same_command_goes_on(pair, tmp_path, warm):
    """Killed in mid-training, which goes on from the state that was saved and ends as if undisturbed, bit for bit."""
    code, errors = lose_a_process(command(tmp_path), tmp_path)
    lines = said(errors)
    assert code == 2 and "Traceback" not in errors and len(lines) == 1, (code, errors)
    assert "was lost" in lines[0] and "run the same command again" in lines[0] and ".cc:" not in lines[0]
    kept = max(path.name for path in tmp_path.glob("state/step*.pt"))
    assert not (tmp_path / "model.safetensors").exists()
    done = run(warm, tmp_path, log=tmp_path / "log.txt")
    assert done.returncode == 0, done.stderr
    assert f"goes on from step {int(kept[4:-3])}" in (tmp_path / "log.txt").read_text()
    assert read_json(tmp_path / "curve.json")["losses"] == read_json(pair / "curve.json")["losses"]
    expected, actual = weights(pair), weights(tmp_path)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_who_stops_the_launcher_stops_its_processes(tmp_path, warm):
    """As a scheduler or a user does: none goes on alone, and what was saved is kept."""
    line = command(tmp_path, PLAN.replace("steps=100,", "steps=100000,"))
    process = subprocess.Popen(line, cwd=ROOT, env=warm, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob("state/step*.pt")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ranks = [process_of_rank(rank, tmp_path) for rank in (0, 1)]
    assert all(ranks)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
    assert [*tmp_path.glob("state/step*.pt")]


def test_torchrun_starts_the_same_run(pair, tmp_path, warm):
    """As docs/paper.md writes it: its own options, `--`, the verb and its options."""
    [python, _, module, *verb] = command(tmp_path, processes=None, log=tmp_path / "log.txt")
    line = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", module, *verb]
    done = subprocess.run(line, cwd=ROOT, env=warm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, actual = weights(pair), weights(tmp_path)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_a_mistake_of_one_process_ends_all_in_its_line(tmp_path, warm):
    """The lead alone writes: the other must not wait for it."""
    (tmp_path / "file").write_text("")
    done = run(warm, tmp_path, curve=tmp_path / "file/curve.json")
    lines = said(done.stderr)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(lines) == 1
    assert "file" in lines[0] and "lost" not in lines[0]


@pytest.fixture
def group(monkeypatch):
    """What a process of two asks of torch.distributed, in order; of two GPUs it has the second."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda *backend, **facts: asked.append((backend, facts))
    )
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: asked.append("destroyed"))
    return asked


def test_a_group_of_gpus_is_bound_to_the_claimed_ones(group):
    with distributed.together("cuda") as world:
        assert (world.rank, world.size) == (0, 2)
    (backend, facts), last = group
    assert backend == ("nccl",) and facts["device_id"] == torch.device("cuda", 1) and last == "destroyed"


def test_processes_of_a_job_do_not_share_gpus(group, monkeypatch, refused):
    monkeypatch.setenv("ROBUQ_BENCH_JOBS_PER_GPU", "3")
    refused(distributed.together("cuda").__enter__, "a GPU of its own", "jobs_per_gpu")
    assert group == []


def test_after_an_error_nobody_waits_for_the_others(group):
    with pytest.raises(ZeroDivisionError), distributed.together("cpu"):
        raise ZeroDivisionError
    ((backend, facts),) = group
    assert backend == ("gloo",) and facts["device_id"] is None


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, warm):
    done = run(warm, tmp_path, PLAN + ",train.batch=33")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said(done.stderr) == ["robuq-bench: batch 33 is not a multiple of 2, the number of processes"]


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


def test_libraries_are_quiet_unless_asked(monkeypatch):
    from robuq_bench.train import launch

    seen = []
    monkeypatch.setattr(launch.subprocess, "Popen", lambda line, env, **output: seen.append(env))
    monkeypatch.setattr(launch.socket, "socket", lambda: MagicMock())
    launch.start(["train"], 1, [])
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    launch.start(["train"], 1, [])
    assert [environment["TORCH_CPP_LOG_LEVEL"] for environment in seen] == ["ERROR", "INFO"]


def test_shares_cover_all_once():
    parts = [World(rank, 4).part(12) for rank in range(4)]
    assert [list(range(12)[part]) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert ALONE.part(5) == slice(0, 5) and ALONE.leads and not World(1, 2).leads
