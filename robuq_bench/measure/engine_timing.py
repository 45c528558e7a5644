"""Timing on a GPU: graph replays for kernels, events around whole calls for models; and what GPU it was."""

import csv
import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from robuq_bench.measure.engine_records import Hardware, Times

WARM_UP = 3  # calls
WARM_MS, MOST_WARM = 250.0, 1000
"""Calls that do not count, until a GPU is as fast as in a sampling loop: milliseconds of them, and how many at most."""
CACHE_BYTES = 128 << 20  # inputs and outputs of all sets together: well above any L2
QUERY = ("driver_version", "clocks.max.sm", "clocks.sm", "clocks.mem", "power.limit")


def graph_times(calls: Sequence[Callable[[], Any]], replays: int = 20) -> dict[str, float]:
    """Microseconds of one call: median, p20, p80 and minimum over replays of a graph that makes all `calls` twice."""
    settle()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles and loads kernels, which a capture cannot
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in [*calls, *calls]:
            call()
    spans = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for _ in range(WARM_UP):
        graph.replay()
    for start, stop in spans:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    taken = [start.elapsed_time(stop) * 1e3 / len(calls) / 2 for start, stop in spans]
    p20, median, p80 = (float(value) for value in np.percentile(taken, [20, 50, 80]))
    return {"us": median, "us_p20": p20, "us_p80": p80, "us_min": min(taken)}


def settle() -> None:
    """Wait for the GPU, where there is one: the kernels read constants ahead of the stream's order."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def call_times(call: Callable[[int], Any], repeats: int, most_seconds: float) -> Times:
    """Milliseconds of `call(turn)`, one after the other as in a sampling loop, each from event to event.

    Launching is part of it: a call whose work the host cannot feed fast enough takes as long as the host does.
    Fewer than `repeats` calls, but never fewer than five, when they would take more than `most_seconds`. Calls of at
    least WARM_MS altogether go before them.
    """
    call(0)  # on inputs of its own, as every turn
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call(1)
    stop.record()
    torch.cuda.synchronize()
    once = start.elapsed_time(stop)
    repeats = max(5, min(repeats, int(1e3 * most_seconds / once)))
    warm = max(WARM_UP, min(MOST_WARM, round(WARM_MS / once)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(warm + repeats + 1)]
    marks[0].record()
    for turn, mark in enumerate(marks[1:]):
        call(turn)
        mark.record()
    torch.cuda.synchronize()
    taken = [one.elapsed_time(other) for one, other in pairwise(marks)][warm:]
    return summary(taken)


def summary(milliseconds: Sequence[float]) -> Times:
    """Median, p20, p80 and minimum."""
    p20, median, p80 = (float(value) for value in np.percentile(milliseconds, [20, 50, 80]))
    return Times(median_ms=median, p20_ms=p20, p80_ms=p80, min_ms=min(milliseconds), repeats=len(milliseconds))


def sets(bytes_of_one: int) -> int:
    """How many sets of inputs a kernel is timed over, so that none is found in the cache."""
    return max(3, min(16, CACHE_BYTES // bytes_of_one + 1))


def hardware() -> Hardware:
    """The current GPU. nvidia-smi is asked, where it is there, and changes nothing."""
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    told = _query(f"GPU-{facts.uuid}")  # its index may be another one where only some GPUs are visible
    return Hardware(
        name=facts.name,
        capability=f"{facts.major}.{facts.minor}",
        multiprocessors=facts.multi_processor_count,
        l2_bytes=facts.L2_cache_size,
        memory_bytes=facts.total_memory,
        driver=told.get("driver_version"),
        cuda=torch.version.cuda,
        torch=torch.__version__,
        triton=_version("triton"),
        max_sm_clock_mhz=_number(told.get("clocks.max.sm")),
        sm_clock_mhz=_number(told.get("clocks.sm")),
        memory_clock_mhz=_number(told.get("clocks.mem")),
        power_limit_w=_number(told.get("power.limit")),
    )


def _query(name: str) -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    line = next(csv.reader([text.strip()], skipinitialspace=True), [])
    return dict(zip(QUERY, line, strict=False))


def _number(text: str | None) -> float | None:
    """A reading, or None where the tool says "[N/A]"."""
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
