"""A job runs on the device it asks for, or says why not."""

import subprocess
import sys
import tempfile

import pytest
import torch

from robuq_bench import devices
from robuq_bench.devices import describe, use


def test_cpu_takes_its_threads():
    assert use("cpu", 2) == "cpu" and torch.get_num_threads() == 2
    assert use("cpu", 1) == "cpu" and torch.get_num_threads() == 1
    assert describe("cpu") == "cpu"


def test_a_missing_gpu_is_refused_and_never_replaced(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: use("cuda", 1), "needs a CUDA GPU", "CPU preset (quick, smoke)")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu():
    assert use("cuda", 1) == "cuda" and "NVIDIA" in describe("cuda")


def test_two_jobs_never_share_a_device(tmp_path, monkeypatch):
    """A second process gets the next device, a third is refused; the first keeps its own when it asks again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim(["a", "b"]) == 0
    script = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from robuq_bench.devices import claim\nfrom robuq_bench.errors import BenchError\n"
        "print(claim(['a', 'b']))\ntry: claim(['a'])\nexcept BenchError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "1" and second.startswith("all 1 visible GPUs are taken")
    assert devices.claim(["a", "b"]) == 0
    for handle in devices._claimed.values():
        handle.close()
