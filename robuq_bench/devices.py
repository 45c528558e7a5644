"""The device a job runs on: what the preset asks for, or a plain refusal. Never a silent fallback."""

import tempfile
from pathlib import Path
from typing import IO

import torch
from threadpoolctl import threadpool_limits

from robuq_bench.errors import BenchError

_claimed: dict[str, IO[str]] = {}  # lock files of this process, open until it ends


def use(device: str, threads: int) -> str:
    """Set CPU threads and return the torch device; of several GPUs, one that no other job has.

    Raises BenchError when CUDA is asked for and absent, or every GPU is taken.
    """
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's BLAS does not listen to torch
    if device != "cuda":
        return device
    if not torch.cuda.is_available():
        raise BenchError(
            "this preset needs a CUDA GPU and none is visible here; use a CPU preset (quick, smoke), or a GPU machine"
        )
    count = torch.cuda.device_count()
    torch.cuda.set_device(claim([str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]))
    return device


def claim(names: list[str]) -> int:
    """Index of the first of the devices `names` that no other process holds; it is held until this one ends.

    Raises BenchError when all are taken.
    """
    import fcntl  # not on Windows, where no CPU job needs it

    for index, name in enumerate(names):
        if name in _claimed:
            return index
        handle = open(Path(tempfile.gettempdir()) / f"robuq-bench-{name}.lock", "w")  # noqa: SIM115 - kept open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            continue
        _claimed[name] = handle
        return index
    raise BenchError(
        f"all {len(names)} visible GPUs are taken by other jobs of robuq_bench; wait for them, or let fewer run at "
        "once (snakemake --resources gpu=N)"
    )


def describe(device: str) -> str:
    """Name of the device for provenance."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
