"""One whole-forward measurement in a process of its own: memory counters see nothing else, a crash costs one row.

A worker gets everything ready (load, compile, capture, check against the reference), reports, and times only when told
to: many get ready side by side, and each is timed alone.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, write_text
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure.agreement import SLACK, relative_error, round_as_deployed
from robuq_bench.measure.engine_methods import METHODS, SHAPE, SIZES
from robuq_bench.measure.engine_records import Check, Forward
from robuq_bench.measure.engine_timing import call_times

SETS = 4  # of inputs that the timed passes rotate over
ENDS = 4  # images compared at either end of a batch
READY = "ready"
PATIENCE = 120.0  # seconds for a reference
LATER = 5e-3  # relative error that the first inputs may have more of after timing than before
INFINITE = 1e9  # the error of an output that is not finite, as JSON has no infinity
ROUNDED = "rounded "
THREADS = 4  # of a reference, which begins with much work on the CPU


@dataclass(frozen=True)
class Task:
    """A row to measure. `folder` holds packed files and reference outputs."""

    model: str
    method: str
    batch: int
    folder: Path

    @property
    def key(self) -> tuple[str, str, int]:
        return self.model, self.method, self.batch

    @property
    def packed(self) -> Path:
        return self.folder / f"{self._stem(self.method)}.packed.safetensors"

    @property
    def expected(self) -> Path:
        """Outputs of the method's reference on `compared` images."""
        return self.folder / f"{self._stem(METHODS[self.method].reference)}.outputs.safetensors"

    @property
    def failed(self) -> Path:
        """Where the reason lies when the reference could not be made."""
        return self.expected.with_suffix(".failed")

    def _stem(self, method: str) -> str:
        return f"{self.model}-{method}".replace("/", "").replace(" ", "-")


@dataclass(frozen=True)
class Plan:
    """How rows are timed. batches: all that the run may see, so that references cover them."""

    batches: tuple[int, ...]
    repeats: int
    most_seconds: float


def inputs(batch: int, turn: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, timesteps and labels on the GPU; a smaller batch is the beginning of a larger one of the same turn."""
    generator = torch.Generator().manual_seed(turn)
    images = torch.randn(batch, SHAPE.channels, SHAPE.size, SHAPE.size, generator=generator)
    own = torch.Generator().manual_seed(1000 + turn)
    draws = torch.rand(batch, 2, generator=own)
    labels = (draws[:, 1] * SHAPE.classes).long()
    return images.cuda(), (draws[:, 0] * 1000).cuda(), labels.cuda()


def compared(batch: int) -> list[int]:
    """Indices of the images of a batch that are checked: both ends."""
    return sorted({*range(min(ENDS, batch)), *range(max(0, batch - ENDS), batch)})


def reference(task: Task, plan: Plan, channel: Connection) -> None:
    """Write the packed file, where there is one, and what its evaluated model (or fp32) answers; or why it failed."""
    try:
        with torch.inference_mode():
            _reference(task, plan)
    except Exception as error:
        write_text(task.failed, _reason(error))
    channel.close()


def wait_for(path: Path, task: Task) -> Path:
    """`path` once the reference's process has written it. Raises BenchError when that failed or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if task.failed.exists():
            raise BenchError(f"the reference failed: {task.failed.read_text()}")
        if time.monotonic() > deadline:
            raise BenchError(f"the reference was not there after {PATIENCE:.0f} s")
        time.sleep(0.1)
    return path


def _reference(task: Task, plan: Plan) -> None:
    method, spec = METHODS[task.method], SIZES[task.model]
    torch.set_num_threads(THREADS)
    if method.deployed:
        methods.write_packed(method, spec, task.packed)
        model = methods.simulated(task.packed)
    else:
        model = methods.load(METHODS["fp32 eager"], spec, None)
    wanted = sorted({index for batch in plan.batches for index in compared(batch)})
    given = inputs(max(plan.batches))

    def answers() -> dict[str, Tensor]:
        return {str(i): model(*(part[i : i + 1] for part in given))[0].float().cpu() for i in wanted}

    found = answers()
    if method.deployed:
        round_as_deployed(model.model)
        found |= {ROUNDED + name: answer for name, answer in answers().items()}
    with atomic(task.expected) as path:
        save_file(found, path)


def measure(task: Task, plan: Plan, channel: Connection) -> None:
    """Send "ready" once only timing is left, wait for a word, send the row. A row that cannot be is sent at once."""
    row = {"model": task.model, "method": task.method, "batch": task.batch}
    try:
        with torch.inference_mode():
            _measure(task, plan, channel, row)
    except torch.cuda.OutOfMemoryError as error:
        channel.send(Forward(**row, status="out of memory", reason=_reason(error)))
    except BenchError as error:
        channel.send(Forward(**row, status="not available", reason=str(error)))
    except Exception as error:
        channel.send(Forward(**row, status="failed", reason=_reason(error)))
    stay(channel)


def stay(channel: Connection) -> None:
    """Wait to be let go: a process that ends frees its GPU memory, which the one being timed would feel."""
    with suppress(EOFError, OSError):
        channel.recv()


def _measure(task: Task, plan: Plan, channel: Connection, row: dict) -> None:
    method, spec = METHODS[task.method], SIZES[task.model]
    if method.deployed:
        wait_for(task.packed, task)
    ring = [inputs(task.batch, turn) for turn in range(SETS)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    model = methods.load(method, spec, task.packed if method.deployed else None)
    methods.release()
    loaded, resident = time.perf_counter(), torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    first = model(*ring[0])
    torch.cuda.synchronize()
    done = time.perf_counter()
    setup = {"load": round(loaded - start, 2), "first pass": round(done - loaded, 2)}
    check = agreement(first.float().cpu(), task)
    row |= {"check": check, "setup": setup, "resident_bytes": resident}
    row["notes"] = (*method.notes, *getattr(model.model, "notes", ()))
    if method.deployed:
        row["file_bytes"] = task.packed.stat().st_size
        row["average_bits"] = methods.average_bits(methods.bits_of(method, spec))
    else:
        row["file_bytes"] = methods.stored_bytes(model.model)
    if not check.agrees:
        reason = f"output differs from {check.against} by {check.error:.2g}, more than {check.bound:g}"
        channel.send(Forward(**row, status="disagrees", reason=reason))
        return
    start = time.perf_counter()
    for turn in range(2 * SETS):  # compiled models record their CUDA graph in the second pass
        model(*ring[turn % SETS])
    torch.cuda.synchronize()
    setup["warm-up"] = round(time.perf_counter() - start, 2)
    channel.send(READY)
    channel.recv()
    times = call_times(lambda turn: model(*ring[turn % SETS]), plan.repeats, plan.most_seconds)
    row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    again = agreement(model(*ring[0]).float().cpu(), task)  # what was timed still answers as it did
    if not again.error <= check.error + LATER:
        reason = f"output after timing differs from {check.against} by {again.error:.2g}, before by {check.error:.2g}"
        channel.send(Forward(**row, status="disagrees", reason=reason))
        return
    channel.send(Forward(**row, status="ok", times=times))


def agreement(output: Tensor, task: Task) -> Check:
    """Relative error of the compared images of a batch against the reference, all together.

    A deployed model may differ from its evaluated model by SLACK times what rounding alone does to that model.
    """
    answers, method = load_file(wait_for(task.expected, task)), METHODS[task.method]
    chosen = compared(task.batch)
    expected = torch.stack([answers[str(index)] for index in chosen])
    error = relative_error(output[chosen], expected) if torch.isfinite(output).all() else INFINITE
    against, bound = "diffusers in fp32", method.bound
    if method.deployed:
        rounded = torch.stack([answers[f"{ROUNDED}{index}"] for index in chosen])
        against, bound = "the simulated model of the same packed file", SLACK * relative_error(rounded, expected)
    return Check(error=error, bound=bound, against=against)


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:300]
