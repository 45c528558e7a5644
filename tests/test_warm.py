"""`robuq-bench warm`: calls are answered by forks of one server, and end as they would by themselves."""

import os
import subprocess
import sys
import time

import pytest
import torch

from robuq_bench import cli
from robuq_bench import warm as warm_module

CALL = f"{sys.executable} -m robuq_bench.cli"


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A few calls one after the other: a mistake, a wrong option, help; then two at once, each in a folder of its own;
    then what the command itself returns."""
    root = tmp_path_factory.mktemp("calls")
    calls = ["export --model nope --packed x", "export --wrong", "--version", "export --help"]
    script = "; ".join(f"{CALL} {call}; echo code $?" for call in calls)
    for name in "ab":
        (root / name).mkdir()
        script += f"; (cd {name}; {CALL} export --model nope --packed x --log log.txt) &"
    command = [
        sys.executable,
        "-m",
        "robuq_bench.cli",
        "warm",
        "bash",
        "-c",
        script.replace("&;", "&") + " wait; exit 7",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    done.root = root
    return done


def test_a_call_prints_and_returns_what_it_would_by_itself(answered):
    codes = [line for line in answered.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 2", "code 2", "code 0", "code 0"]
    assert "robuq-bench: nope: no such checkpoint\n" in answered.stderr
    assert "the following arguments are required: --model" in answered.stderr
    assert "usage: robuq-bench export" in answered.stdout


def test_the_command_decides_the_exit_code(answered):
    assert answered.returncode == 7


def test_calls_run_at_once_and_in_their_own_folders(answered):
    """Each writes where its caller stands."""
    assert answered.stderr.count("nope: no such checkpoint") == 3
    assert all("export --model nope" in (answered.root / name / "log.txt").read_text() for name in "ab")


def test_a_call_ends_when_its_caller_is_killed(tmp_path, in_root, warm):
    """What it has saved stays behind, and it saves no more."""
    options = ["--preset", "smoke", "--set", "train.steps=100000", "--recipe", "full_precision", "--variant", "W32A32"]
    options += (text for name in ("model", "curve", "state") for text in (f"--{name}", tmp_path / name[0]))
    with subprocess.Popen([*CALL.split(), "train", *options], env=warm, stderr=subprocess.DEVNULL) as process:
        deadline = time.time() + 60
        while not saved(tmp_path) and time.time() < deadline:
            time.sleep(0.05)
        process.kill()
    time.sleep(2)
    before = saved(tmp_path)
    time.sleep(1.5)
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


def test_processes_of_a_launch_are_calls_themselves():
    """launch answers by itself, whatever server there is; the process that it starts asks for one."""
    for count, words in (("0", "--processes 0: give at least one"), ("1", "no server answers there")):
        line = [*CALL.split(), "launch", "--processes", count, "--", "train"]
        done = subprocess.run(line, env=os.environ | {cli.SERVER: "/nowhere"}, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


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


def test_a_fork_that_cannot_use_cuda_starts_a_process_of_its_own(capfd):
    assert warm_module._by_itself(["launch", "--processes", "0", "--", "train"]) == 2
    assert "--processes 0" in capfd.readouterr().err
