"""Time the whole denoiser: the deployed model beside what a user would run instead, in one run on one GPU.

Rows come in the order of their importance. The JSON is written after every row; run again with the same code on the
same GPU, it keeps what it has. Weights are random: speed and memory do not depend on what they say.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from robuq_bench import provenance
from robuq_bench.config.base import build
from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import read_json, write_json
from robuq_bench.measure import engine_waves as waves
from robuq_bench.measure.engine_methods import METHODS, SIZES, parameters
from robuq_bench.measure.engine_plan import ORDER
from robuq_bench.measure.engine_records import Forward, ForwardTable
from robuq_bench.measure.engine_timing import hardware
from robuq_bench.measure.engine_worker import Plan, Task
from robuq_bench.progress import Bar

EXAMPLE = "robuq-bench engine-table --seconds 400 --out results/engine/table.json"
KEPT = ("ok", "disagrees", "out of memory", "not available")  # what running again would not change
LOADING_BYTES = 4.5e9  # of GPU memory that one process takes at most while it gets ready: fp32 weights and a copy
READY_SECONDS, TUNED_SECONDS = 120.0, 600.0
PROTOCOL = (
    "events around passes made one after the other, a quarter of a second of them before the first that counts, inputs "
    "rotating over 4 sets, in a process of its own"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", nargs="+", default=list(SIZES), help=f"models: {', '.join(SIZES)}")
    parser.add_argument("--method", nargs="+", default=list(METHODS), help=f"of: {', '.join(METHODS)}")
    parser.add_argument("--batch", type=int, nargs="+", help="images of one pass (default: a choice for each method)")
    parser.add_argument("--repeats", type=int, default=30, help="timed passes of each row")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no more rows after this many seconds")
    parser.add_argument("--state", type=Path, help="JSON to go on from and to write after every row (default: --out)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    jit.architecture()
    for kind, given, known in (("size", args.size, SIZES), ("method", args.method, METHODS)):
        for name in given:
            if name not in known:
                raise unknown(kind, name, known)
    # Many processes compile side by side; each would otherwise start as many helpers as there are cores.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    started = time.monotonic()
    wanted = keys(args.size, args.method, args.batch)
    plan = Plan(tuple(sorted({batch for *_, batch in wanted})), args.repeats, most_seconds=2.0)
    facts = {
        "parameters": {size: parameters(SIZES[size]) for size in args.size},
        "hardware": hardware(),
        "code": code(),
    }

    def write(path: Path, rows: list[Forward]) -> None:
        record = provenance.collect(torch.cuda.get_device_name(), protocol=PROTOCOL, cuda=torch.version.cuda)
        seconds = round(time.monotonic() - started, 1)
        table = ForwardTable(rows=tuple(rows), seconds=seconds, provenance=record, **facts)
        write_json(path, table.model_dump(mode="json"))

    state = args.state or args.out
    measure = partial(_waves, plan=plan, deadline=started + args.seconds)
    write(args.out, collect(wanted, kept(state), measure, partial(write, state), args.seconds))


def keys(sizes: Sequence[str], methods: Sequence[str], batches: Sequence[int] | None) -> list[tuple[str, str, int]]:
    """(model, method, batch) of every row, most important first; given batches replace those of the plan.

    Raises BenchError when nothing is left of the plan.
    """
    rows = [(size, method, batch) for size, method, own in ORDER for batch in batches or own]
    chosen = [row for row in dict.fromkeys(rows) if row[0] in sizes and row[1] in methods]
    if not chosen:
        raise BenchError(f"no row of {', '.join(sizes)} by {', '.join(methods)} is planned; XL/2 has every method")
    return chosen


def kept(path: Path) -> dict[tuple[str, str, int], Forward]:
    """Rows of an earlier run that still hold: same code, same GPU."""
    if not path.is_file():
        return {}
    earlier = build(ForwardTable, read_json(path), str(path))
    if (earlier.code, earlier.hardware.name) != (code(), torch.cuda.get_device_name()):
        return {}
    return {row.key: row for row in earlier.rows if row.status in KEPT}


def code() -> str:
    return provenance.code_digest(__name__)


def collect(
    wanted: Sequence[tuple[str, str, int]],
    have: dict[tuple[str, str, int], Forward],
    measure: Callable[[Sequence[tuple[str, str, int]]], Iterator[Forward]],
    write: Callable[[list[Forward]], None],
    seconds: float,
) -> list[Forward]:
    """Rows in the wanted order. What `measure` did not get to is "not reached"; `write` sees every new row."""
    found = dict(have)

    def rows() -> list[Forward]:
        reason = f"the limit of {seconds:g} s (--seconds) was reached"
        left = {key: _unreached(key, reason) for key in wanted if key not in found}
        return [(found | left)[key] for key in wanted]

    todo = [key for key in wanted if key not in have]
    with Bar("whole forward", len(todo)) as bar:
        for row in measure(todo):
            found[row.key] = row
            write(rows())
            bar.advance(1, **({"ms": row.times.median_ms} if row.times else {}))
    return rows()


def _unreached(key: tuple[str, str, int], reason: str) -> Forward:
    model, method, batch = key
    return Forward(model=model, method=method, batch=batch, status="not reached", reason=reason)


def _waves(todo: Sequence[tuple[str, str, int]], plan: Plan, deadline: float) -> Iterator[Forward]:
    """Rows in waves, each with the references that no wave before it made, until the time is over."""
    with tempfile.TemporaryDirectory(prefix="robuq-bench-") as folder:
        tasks = [Task(*key, Path(folder)) for key in todo]
        made: set[Path] = set()
        size = side_by_side(torch.cuda.mem_get_info()[0], os.cpu_count() or 1)
        for part in batched(tasks, size):
            if time.monotonic() > deadline:
                return
            models = {task.expected: task for task in part if task.expected not in made}
            made |= models.keys()
            patience = TUNED_SECONDS if METHODS[part[0].method].tuned else READY_SECONDS
            yield from waves.wave(part, list(models.values()), plan, patience)


def batched(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    """At most `size` tasks at a time; those that are tuned for minutes keep no others waiting."""
    for _, alike in groupby(tasks, key=lambda task: METHODS[task.method].tuned):
        rest = list(alike)
        for at in range(0, len(rest), size):
            yield rest[at : at + size]


def side_by_side(free_bytes: int, cores: int) -> int:
    """How many processes get ready at once, so that neither GPU memory nor cores run out."""
    return max(1, min(int(free_bytes / LOADING_BYTES), cores))
