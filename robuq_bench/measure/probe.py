"""How fast is this GPU at what the paper's run consists of? Training steps, denoisers, features, the autoencoder.

About a minute. `robuq-bench plan` computes from the JSON what a preset would cost. Every part is made in a process of
its own, side by side where GPU memory allows, and timed alone; weights are random.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
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
SIDE_BY_SIDE_BYTES = 80e9  # GPU memory that all parts together take
READY_SECONDS, TIMING_SECONDS = 150.0, 60.0
THREADS = 4  # of each process: weights are made and converted on the CPU


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", nargs="+", default=list(parts()), metavar="PART", help="of: " + "; ".join(parts()))
    parser.add_argument("--inception", type=Path, help="weights of torch-fidelity's Inception, to time it as well")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each part")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


@dataclass(frozen=True)
class Task:
    """A part to time: its name, and the weights it may need."""

    part: str
    inception: Path | None


@dataclass(frozen=True)
class Plan:
    """How parts are timed."""

    repeats: int
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
    together = len(tasks) if torch.cuda.mem_get_info()[0] >= SIDE_BY_SIDE_BYTES else 1
    found: list[Throughput] = []
    facts = {"model": MODEL, "pixels": PIXELS, "hardware": hardware()}
    with Bar("probe", len(tasks)) as bar:
        for at in range(0, len(tasks), together):
            for row in wave(tasks[at : at + together], Plan(args.repeats)):
                found.append(row)
                record = provenance.collect(torch.cuda.get_device_name(), cuda=torch.version.cuda)
                seconds = round(time.monotonic() - started, 1)
                probe = Probe(parts=tuple(found), seconds=seconds, provenance=record, **facts)
                write_json(args.out, probe.model_dump(mode="json"))
                bar.advance(1, **({"images/s": row.images_per_s} if row.times else {}))


def wave(tasks: Sequence[Task], plan: Plan) -> Iterator[Throughput]:
    """One row a task, in order: all get ready side by side, then each is timed while the others wait."""
    deadline = time.monotonic() + READY_SECONDS
    workers = [start(measure, task, plan) for task in tasks]
    try:
        ready = {worker.task: answer for worker, answer in gather(workers, deadline)}
        for worker in workers:  # timing needs an idle GPU
            if ready[worker.task] is None:
                worker.end(patience=0)
        for worker in workers:
            answer = ready[worker.task]
            if answer == READY:
                answer = _timed(worker)
            yield answer if isinstance(answer, Throughput) else _lost(worker.task)
    finally:
        end_all(workers)


def _timed(worker: Worker) -> object:
    worker.channel.send("go")
    return worker.answer(TIMING_SECONDS)


def _lost(task: Task) -> Throughput:
    reason = f"its process died, or was not ready within {READY_SECONDS:.0f} s"
    return Throughput(part=task.part, what=parts()[task.part].what, reason=reason)


def measure(task: Task, plan: Plan, channel: Connection) -> None:
    """Send "ready" once only timing is left, wait for a word, send the part's row; one without a speed at once."""
    part = parts(task.inception)[task.part]
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
    if (check := ready.check()) is not None and not check.agrees:
        raise BenchError(f"output differs from {check.against} by {check.error:.2g}, more than {check.bound:.2g}")
    facts = {"setup": round(time.perf_counter() - begun, 1), "check": check, "peak_bytes": peak}
    channel.send(READY)
    channel.recv()
    times = call_times(ready.call, plan.repeats, plan.most_seconds)
    return Throughput(part=name, what=part.what, batch=ready.batch, times=times, **facts)


WARM_UP = 6  # calls: more than a training step's plain ones before it is recorded as a CUDA graph


def fitting(part: Part) -> Ready:
    """The part at its own batch, or at half as many images until memory does. Raises OutOfMemoryError at one image."""
    batch = part.batch
    while True:
        try:
            ready = part.make(batch)
            release()
            torch.cuda.reset_peak_memory_stats()
            for turn in range(WARM_UP):
                ready.call(turn)
            torch.cuda.synchronize()
            return ready
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        release()
