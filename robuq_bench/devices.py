"""The device a job runs on: what the preset asks for, or a plain refusal. Never a silent fallback."""

import torch
from threadpoolctl import threadpool_limits

from robuq_bench.errors import BenchError


def use(device: str, threads: int) -> str:
    """Set CPU threads and return the torch device. Raises BenchError when CUDA is asked for and absent."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's BLAS does not listen to torch
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError(
            "this preset needs a CUDA GPU and none is visible here; use a CPU preset (quick, smoke), or a GPU machine"
        )
    return device


def describe(device: str) -> str:
    """Name of the device for provenance."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
