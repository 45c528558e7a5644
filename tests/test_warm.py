"""`robuq-bench warm`: calls are answered by forks of one server, and end as they would by themselves."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from robuq_bench import cli
from robuq_bench import warm as warm_module

CALL = f"{sys.executable} -m robuq_bench.cli"
SLOW = f"{CALL} train --preset smoke --set train.steps=100000 --recipe full_precision --variant W32A32"


def warm(script: str, root, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "robuq_bench.cli", "warm", "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, **options)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A few calls, each after the other: a mistake, a wrong option, help, and what the command itself returns."""
    root = tmp_path_factory.mktemp("calls")
    calls = ["export --model nope --packed x", "export --wrong", "--version", "export --help"]
    return warm("; ".join(f"{CALL} {call}; echo code $?" for call in calls) + "; exit 7", root)


def test_a_call_prints_and_returns_what_it_would_by_itself(answered):
    codes = [line for line in answered.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 2", "code 2", "code 0", "code 0"]
    assert "robuq-bench: nope: no such checkpoint\n" in answered.stderr
    assert "the following arguments are required: --model" in answered.stderr
    assert "usage: robuq-bench export" in answered.stdout


def test_the_command_decides_the_exit_code(answered):
    assert answered.returncode == 7


def test_calls_run_at_once_and_in_their_own_folders(tmp_path):
    """Each writes where its caller stands."""
    for name in "ab":
        (tmp_path / name).mkdir()
    script = "; ".join(f"(cd {name}; {CALL} export --model nope --packed x --log log.txt; true) &" for name in "ab")
    done = warm(script.replace("&;", "&") + " wait", tmp_path)
    assert done.returncode == 0 and done.stderr.count("nope: no such checkpoint") == 2
    assert all("export --model nope" in (tmp_path / name / "log.txt").read_text() for name in "ab")


def test_a_call_ends_when_its_caller_is_killed(tmp_path, in_root):
    """What it has saved stays behind, and it saves no more."""
    script = f"{SLOW} --model {tmp_path}/m --curve {tmp_path}/c --state {tmp_path}/s & echo $!; wait"
    command = [sys.executable, "-m", "robuq_bench.cli", "warm", "bash", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        caller = int(process.stdout.readline())
        deadline = time.time() + 60
        while not saved(tmp_path) and time.time() < deadline:
            time.sleep(0.05)
        os.kill(caller, signal.SIGKILL)
        process.wait(30)
    time.sleep(2)
    before = saved(tmp_path)
    time.sleep(2)
    assert before and before == saved(tmp_path)


def saved(folder):
    return sorted(path.name for path in folder.glob("s/step*.pt"))


def test_no_command(capsys):
    assert cli.main(["warm"]) == 2
    assert "no command to run; for example:" in capsys.readouterr().err


def test_no_server(monkeypatch, capsys):
    monkeypatch.setenv(cli.SERVER, "/nowhere")
    assert cli.main(["export", "--help"]) == 2
    assert "ROBUQ_BENCH_SERVER=/nowhere: no server answers there; unset it" in capsys.readouterr().err


def test_packages_that_look_for_gpus_at_import_see_none(tmp_path, monkeypatch):
    """To ask would wake CUDA in the server, whose forks could then not use it."""
    (tmp_path / "asks_for_gpus.py").write_text(
        "import torch\nSEEN = torch.cuda.is_available(), torch.cuda.device_count()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(warm_module, "IMPORTED", ("asks",))
    monkeypatch.setitem(cli.VERBS, "asks", "asks_for_gpus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    warm_module._import()
    assert sys.modules["asks_for_gpus"].SEEN == (False, 0)
    assert torch.cuda.is_available() and torch.cuda.device_count() == 2


def test_a_fork_that_cannot_use_cuda_starts_a_process_of_its_own(tmp_path, capfd):
    assert warm_module._by_itself(["export", "--model", str(tmp_path / "no"), "--packed", "x"]) == 2
    assert "no such checkpoint" in capfd.readouterr().err
