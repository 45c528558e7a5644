"""The launch that joins a second stream is an ordinary one: an early one may read what is not finished there."""

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from robuq_bench.engine import streams
from robuq_bench.engine.kernels import jit


@pytest.fixture
def launched(monkeypatch):
    """Numbers of attributes of the launches on a stream that only pretends."""
    counts = []
    stream = SimpleNamespace(cuda_stream=7, wait_event=lambda event: counts.append("wait"))
    launch = SimpleNamespace(cuLaunchKernelEx=lambda given, *rest: counts.append(given._obj.count) or 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(jit, "driver", lambda: launch)
    return counts


def test_only_the_launch_after_a_join_waits_for_all_before_it(launched):
    kernel = object.__new__(jit.Kernel)
    kernel.shared_bytes, kernel.device, kernel._function = 0, None, ctypes.c_void_p()
    kernel._early = ctypes.pointer(jit._Attribute(id=6, value=1))
    kernel(1, 32, ctypes.c_int())
    streams._join(None)
    kernel(1, 32, ctypes.c_int())
    kernel(1, 32, ctypes.c_int())
    assert launched == [1, "wait", 0, 1]
