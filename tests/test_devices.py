"""A job runs on the device it asks for, or says why not; of several, each belongs to one job at a time."""

import subprocess
import sys
import tempfile
import time

import pytest
import torch
from torch.utils import _triton

from robuq_bench import devices
from robuq_bench.devices import claim, describe, expect, held_seconds, release, use


def test_cpu_takes_its_threads():
    assert use("cpu", 2) == "cpu" and torch.get_num_threads() == 2
    assert use("cpu", 1) == "cpu" and torch.get_num_threads() == 1
    assert describe("cpu") == "cpu"


def test_a_missing_gpu_is_refused_and_never_replaced(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: use("cuda", 1), "needs a CUDA GPU", "CPU preset (quick, smoke)")
    refused(lambda: expect("cuda", 1), "needs a CUDA GPU")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: type("Properties", (), {"uuid": f"gpu-{k}"}))


@pytest.mark.parametrize(("asked", "names"), [(None, ["gpu-0", "gpu-1"]), ("1", ["gpu-0"]), ("2", ["gpu-0", "gpu-1"])])
def test_as_many_gpus_as_asked_for(asked, names, two_gpus, monkeypatch):
    if asked:
        monkeypatch.setenv(devices.ASKED, asked)
    assert devices.gpus() == names


@pytest.mark.parametrize(
    ("asked", "words"), [("3", "3 GPUs were asked for and 2 visible"), ("0", "ROBUQ_BENCH_GPUS=0: give a whole")]
)
def test_more_gpus_than_there_are(asked, words, two_gpus, monkeypatch, refused):
    monkeypatch.setenv(devices.ASKED, asked)
    refused(lambda: expect("cuda", 1), words)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu():
    assert use("cuda", 1) == "cuda" and "NVIDIA" in describe("cuda")
    release()


@pytest.fixture
def locks(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_claimed", {})
    monkeypatch.setattr(devices, "_held", {"since": 0.0, "seconds": 0.0})
    yield tmp_path
    release()


def other(locks, code: str) -> subprocess.Popen:
    """Another job that runs `code` with the same locks."""
    start = "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]; from robuq_bench.devices import *\n"
    command = [sys.executable, "-c", start + code, str(locks)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_jobs_never_share_a_device(locks):
    """A second job gets the next device, and none that is taken; the first keeps its own when it asks again."""
    assert claim(["a", "b"]) == 0
    found, errors = other(locks, "print(claim(['a', 'b']), claim(['a', 'b']))").communicate(timeout=60)
    assert found.split() == ["1", "1"] and not errors
    assert claim(["a", "b"]) == 0


def test_a_job_waits_for_its_turn(locks):
    """The other job gets the device after it was released, never before, and says that it waits."""
    assert claim(["a"]) == 0
    with other(locks, "print(claim(['a']), time.time(), flush=True)") as job:
        line = job.stderr.readline()
        time.sleep(0.2)
        assert "waiting for a GPU: other jobs hold all 1" in line and job.poll() is None
        before = time.time()
        release()
        index, when = job.stdout.readline().split()
    assert index == "0" and float(when) >= before


def test_only_the_time_a_device_is_held_counts(locks):
    assert held_seconds() == 0
    claim(["a"])
    time.sleep(0.05)
    release()
    first = held_seconds()
    time.sleep(0.05)
    assert 0.05 <= first == held_seconds() < 0.1
    claim(["a"])
    assert held_seconds() >= first


def test_jobs_share_a_device_when_they_may(locks, monkeypatch):
    """Two on each of two devices, spread evenly; the fifth waits. A shared device counts in part."""
    monkeypatch.setenv(devices.SHARED, "2")
    jobs = [other(locks, "print(claim(['a', 'b']), flush=True); sys.stdin.read()") for _ in range(4)]
    assert sorted(job.stdout.readline().strip() for job in jobs) == ["0", "0", "1", "1"]
    assert devices._free(["a", "b"]) is None
    for job in jobs:
        job.kill()
        job.communicate()
    assert claim(["a", "b"]) == 0
    time.sleep(0.1)
    assert 0.05 <= held_seconds() < 0.1


def test_jobs_per_gpu_is_a_number(monkeypatch, refused):
    monkeypatch.setenv(devices.SHARED, "two")
    refused(devices.jobs_per_gpu, "ROBUQ_BENCH_JOBS_PER_GPU=two", "--config jobs_per_gpu=N")


def test_what_was_concluded_while_gpus_were_hidden_is_forgotten():
    """PyTorch asks once whether Triton can be used and remembers the answer, which a fork would take over."""
    with devices.hidden():
        assert not torch.cuda.is_available() and not _triton.has_triton()
        assert _triton.has_triton.cache_info().currsize == 1
    assert _triton.has_triton.cache_info().currsize == 0
