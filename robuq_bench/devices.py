"""The device a job runs on: what the preset asks for, or a plain refusal. Never a silent fallback.

A GPU belongs to one job at a time, unless the user lets several share it. Jobs that find all taken wait their turn, so
more may be under way than there are GPUs: each does its work on the CPU meanwhile, claims a GPU late (`use`) and gives
it back early (`release`).
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from unittest.mock import patch

import torch
from threadpoolctl import threadpool_limits
from torch.utils import _triton

from robuq_bench.errors import BenchError
from robuq_bench.progress import LOG

ASKED = "ROBUQ_BENCH_GPUS"
"""Environment variable: how many of the visible GPUs to use; unset: all."""
SHARED = "ROBUQ_BENCH_JOBS_PER_GPU"
"""Environment variable: how many jobs may hold one GPU at once; unset: 1. More suits small models, not timings."""
POLL = 0.2  # seconds between looks at GPUs that are taken
URGENT = 0.01  # of jobs that finish what others have begun: they come first
_claimed: dict[str, IO[str]] = {}  # lock files of this process, open until it gives them back or ends
_held = {"since": 0.0, "seconds": 0.0}


def expect(device: str, threads: int) -> None:
    """Set CPU threads, and look whether the device is there, without claiming it.

    Raises BenchError when CUDA is asked for and absent, or fewer GPUs are visible than asked for.
    """
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's BLAS does not listen to torch
    if device == "cuda":
        gpus()


def gpus() -> list[str]:
    """Identifiers of the GPUs that jobs may claim. Raises BenchError when there are none, or too few."""
    if not torch.cuda.is_available():
        raise BenchError(
            "this preset needs a CUDA GPU and none is visible here; use a CPU preset (quick, smoke), or a GPU machine"
        )
    visible = torch.cuda.device_count()
    asked = _number(ASKED, visible, "--config gpus=N")
    if asked > visible:
        raise BenchError(f"{asked} GPUs were asked for and {visible} visible here; ask for fewer (--config gpus=N)")
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(asked)]


def jobs_per_gpu() -> int:
    """How many jobs may hold one GPU at a time."""
    return _number(SHARED, 1, "--config jobs_per_gpu=N")


def _number(variable: str, default: int, option: str) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise BenchError(f"{variable}={text}: give a whole number from 1 on ({option})")
    return int(text)


def use(device: str, threads: int, urgent: bool = False) -> str:
    """Set CPU threads and return the torch device; of several GPUs, one that no other job has, after waiting for one.

    urgent: of jobs that wait this one is most likely to be next, because a row under way is to be finished.
    Raises BenchError as `expect` does.
    """
    expect(device, threads)
    if device == "cuda":
        torch.cuda.set_device(claim(gpus(), URGENT if urgent else POLL))
    return device


def claim(names: list[str], every: float = POLL) -> int:
    """Index of the first of the devices `names` to be free; it is this process's until it ends, or `release`s it.

    every: seconds between looks while others have them all.
    """
    waited = False
    while (index := _free(names)) is None:
        if not waited:
            message = f"waiting for a GPU: other jobs hold all {len(names)}"
            LOG.info(message)
            print(f"robuq-bench: {message}", file=sys.stderr)
            waited = True
        time.sleep(every)
    return index


def _free(names: list[str]) -> int | None:
    """Index of a device that this process has, or that it has just locked; None when others have them all."""
    for index, name in enumerate(names):
        if name in _claimed:
            return index
    for place in range(jobs_per_gpu()):
        for index, name in enumerate(names):
            if handle := _locked(Path(tempfile.gettempdir()) / f"robuq-bench-{name}-{place}.lock"):
                _claimed[name] = handle
                _held["since"] = time.monotonic()
                return index
    return None


def _locked(path: Path) -> IO[str] | None:
    """The file, locked by this process; None when another has it."""
    import fcntl  # not on Windows, where no CPU job needs it

    handle = open(path, "w")  # noqa: SIM115 - kept open
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


def release() -> None:
    """Give the claimed GPU back; what this job still does there is over. Without one nothing happens."""
    if not _claimed:
        return
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    _held["seconds"] += time.monotonic() - _held["since"]
    for handle in _claimed.values():
        handle.close()
    _claimed.clear()


def held_seconds() -> float:
    """Seconds of GPU time that this process has taken so far; of a shared GPU its part."""
    seconds = _held["seconds"] + (time.monotonic() - _held["since"] if _claimed else 0.0)
    return round(seconds / jobs_per_gpu(), 3)


@contextmanager
def hidden() -> Iterator[None]:
    """Hide GPUs from packages that look for one when imported: CUDA, once awake, does not survive a fork.

    What PyTorch concludes meanwhile about Triton is forgotten afterwards, or forks would refuse to compile for a GPU.
    """
    with patch.multiple(torch.cuda, is_available=lambda: False, device_count=lambda: 0):
        yield
    for answer in vars(_triton).values():
        if hasattr(answer, "cache_clear"):
            answer.cache_clear()


def describe(device: str) -> str:
    """Name of the device for provenance."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
