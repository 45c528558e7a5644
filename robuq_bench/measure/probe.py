"""How fast is this GPU at what the paper's run consists of? Training steps, denoisers, features, the autoencoder.

Some minutes. `robuq-bench plan` computes from the JSON what a preset would cost. Every part is made in a process
of its own, side by side where GPU memory allows, and timed alone; weights are random.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from robuq_bench import provenance
from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import write_json
from robuq_bench.measure.engine_methods import release
from robuq_bench.measure.engine_timing import call_times, hardware
from robuq_bench.measure.engine_waves import Worker, end_all, gather, start
from robuq_bench.measure.engine_worker import READY, stay
from robuq_bench.measure.probe_parts import MODEL, PIXELS, Part, Ready, parts
from robuq_bench.measure.probe_records import Probe, Throughput
from robuq_bench.progress import Bar

EXAMPLE = "robuq-bench probe --out results/probe/my-gpu.json"
PATIENCE = 150.0  # seconds for parts made side by side to get ready
TIMING_SECONDS = 60.0  # patience with one part's timing
THREADS = 4  # of each process: weights are made and converted on the CPU


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", nargs="+", default=list(parts()), metavar="PART", help="of: " + "; ".join(parts()))
    parser.add_argument("--inception", type=Path, help="weights of torch-fidelity's Inception, to time it as well")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each part")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds for parts made side by side to get ready"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


@dataclass(frozen=True)
class Task:
    """A part to time: its name, and the weights it may need."""

    part: str
    inception: Path | None


@dataclass(frozen=True)
class Plan:
    """How parts are timed, and how many seconds those made side by side have to get ready."""

    repeats: int
    patience: float = PATIENCE
    most_seconds: float = 3.0


def run(args: argparse.Namespace) -> None:
    jit.architecture()
    for name in args.part:
        if name not in parts():
            raise unknown("part", name, parts())
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(THREADS))
    started = time.monotonic()
    tasks = [Task(name, args.inception) for name in dict.fromkeys(args.part)]
    found = {task.part: missing(task, "not timed yet when the probe ended") for task in tasks}
    facts = {"model": MODEL, "pixels": PIXELS, "hardware": hardware()}
    free = torch.cuda.mem_get_info()[0] / 2**30
    with Bar("probe", len(tasks)) as bar:
        for row in rows(tasks, Plan(args.repeats, args.patience), free):
            found[row.part] = row
            record = provenance.collect(torch.cuda.get_device_name(), cuda=torch.version.cuda)
            seconds = round(time.monotonic() - started, 1)
            probe = Probe(parts=tuple(found.values()), seconds=seconds, provenance=record, **facts)
            write_json(args.out, probe.model_dump(mode="json"))
            bar.advance(1, **({"images/s": row.images_per_s} if row.times else {}))


def rows(tasks: Sequence[Task], plan: Plan, free: float) -> Iterator[Throughput]:
    """One row a task, in order. Processes start together; groups that fit into `free` GiB are made side by side."""
    workers = [start(measure, task, plan) for task in tasks]
    try:
        for group in groups(workers, free):
            yield from side_by_side(group, plan)
    finally:
        end_all(workers)


def groups(workers: Sequence[Worker], free: float) -> Iterator[list[Worker]]:
    """Neighbours that fit into `free` GiB of GPU memory together; one that does not fit at all is by itself."""
    group, taken = [], 0.0
    for worker in workers:
        needed = parts()[worker.task.part].gib
        if group and taken + needed > free:
            yield group
            group, taken = [], 0.0
        group.append(worker)
        taken += needed
    yield group


def side_by_side(group: Sequence[Worker], plan: Plan) -> Iterator[Throughput]:
    """All are made and get ready, then each is timed while the others wait; their memory is free afterwards."""
    deadline = time.monotonic() + plan.patience
    for worker in group:
        with suppress(OSError):  # of one that has died
            worker.channel.send("make")
    ready = {worker.task: answer for worker, answer in gather(group, deadline)}
    for worker in group:  # timing needs an idle GPU
        if ready[worker.task] is None:
            worker.end(patience=0)
    for worker in group:
        answer, lost = ready[worker.task], f"its process died, or was not ready within {plan.patience:g} s"
        if answer == READY:
            answer, lost = _timed(worker), f"its process died, or was not timed within {TIMING_SECONDS:g} s"
        yield answer if isinstance(answer, Throughput) else missing(worker.task, lost)
    end_all(group)


def _timed(worker: Worker) -> object:
    """The worker's row; None, and the worker is ended, when it has none in time."""
    with suppress(OSError):  # of one that has died
        worker.channel.send("go")
    answer = worker.answer(TIMING_SECONDS)
    if answer is None:
        worker.end(patience=0)
    return answer


def missing(task: Task, reason: str) -> Throughput:
    return Throughput(part=task.part, what=parts()[task.part].what, reason=reason)


def measure(task: Task, plan: Plan, channel: Connection) -> None:
    """Wait for a word, send "ready" once only timing is left, wait again, send the row; one without speed at once."""
    part = parts(task.inception)[task.part]
    channel.recv()
    try:
        row = _measure(task.part, part, plan, channel)
    except BenchError as error:
        row = Throughput(part=task.part, what=part.what, reason=str(error))
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        row = Throughput(part=task.part, what=part.what, reason=f"{type(error).__name__}: {line}"[:300])
    channel.send(row)
    stay(channel)


def _measure(name: str, part: Part, plan: Plan, channel: Connection) -> Throughput:
    begun = time.perf_counter()
    ready = fitting(part)
    peak = torch.cuda.max_memory_allocated()  # now: what a CUDA graph takes when replayed is not counted
    release()
    facts = {"setup": time.perf_counter() - begun, "peak_bytes": peak}
    channel.send(READY)
    channel.recv()
    for turn in range(WARM_UP):  # now: a training step is recorded as a CUDA graph while others need no memory
        ready.call(turn)
    if (check := ready.check()) is not None and not check.agrees:
        raise BenchError(f"output differs from {check.against} by {check.error:.2g}, more than {check.bound:.2g}")
    times = call_times(ready.call, plan.repeats, plan.most_seconds)
    return Throughput(part=name, what=part.what, batch=ready.batch, times=times, check=check, **facts)


FITTING, WARM_UP = 2, 4  # calls: together more than a training step's plain ones before it is recorded


def fitting(part: Part) -> Ready:
    """The part at its own batch, or at half as many images until memory does. Raises OutOfMemoryError at one image."""
    batch = part.batch
    while True:
        try:
            ready = part.make(batch)
            release()
            torch.cuda.reset_peak_memory_stats()
            for turn in range(FITTING):
                ready.call(turn)
            torch.cuda.synchronize()
            return ready
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        release()
