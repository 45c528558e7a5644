"""A job runs on the device it asks for, or says why not."""

import pytest
import torch

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
