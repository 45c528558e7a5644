"""Run measurements in processes of their own: a wave gets ready side by side, then each is timed alone."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from robuq_bench.measure.engine_records import Forward
from robuq_bench.measure.engine_worker import READY, Plan, Task, measure, reference

TIMING_SECONDS = 60.0  # patience with one row's timing
Start = Callable[[Callable, Task, Plan], "Worker"]
Rows = Iterable[Forward]


@dataclass(frozen=True)
class Worker:
    """A process and our end of the pipe to it."""

    task: Task
    process: BaseProcess
    channel: Connection

    def answer(self, seconds: float) -> object:
        """What it sends next; None when it does not within `seconds`, or has died."""
        try:
            return self.channel.recv() if self.channel.poll(max(0.0, seconds)) else None
        except (EOFError, OSError):
            return None

    def end(self, patience: float = 1.0) -> None:
        """Let it go and finish, or kill it after `patience` seconds; again, it does nothing."""
        self.channel.close()
        self.process.join(max(0.0, patience))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start(target: Callable, task: Task, plan: Plan) -> Worker:
    """`target(task, plan, channel)` in a fresh process: CUDA does not survive a fork."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(task, plan, theirs), daemon=True)
    process.start()
    theirs.close()
    return Worker(task, process, ours)


def wave(tasks: Sequence[Task], models: Sequence[Task], plan: Plan, seconds: float, begin: Start = start) -> Rows:
    """One row a task, in order; those not ready within `seconds` have failed. models: whose references to make."""
    deadline = time.monotonic() + seconds
    helpers = [begin(reference, task, plan) for task in models]
    workers = [begin(measure, task, plan) for task in tasks]
    try:
        ready = {worker.task: answer for worker, answer in gather(workers, deadline)}
        for helper in helpers:  # later waves need what they write
            helper.end(deadline - time.monotonic())
        for worker in workers:  # timing needs an idle GPU
            if ready[worker.task] is None:
                worker.end(patience=0)
        for worker in workers:
            answer = ready[worker.task]
            if answer == READY:
                worker.channel.send("go")
                answer = worker.answer(TIMING_SECONDS)
            lost = f"its process died, or was not ready within {seconds:.0f} s"
            yield answer if isinstance(answer, Forward) else failed(worker.task, lost)
    finally:
        end_all([*workers, *helpers])


def end_all(workers: Sequence[Worker]) -> None:
    """Let all go, then wait for each: they take their leave side by side."""
    for worker in workers:
        worker.channel.close()
    for worker in workers:
        worker.end()


def gather(workers: Sequence[Worker], deadline: float) -> Iterable[tuple[Worker, object]]:
    """The first answer of every worker, as they come; None for one that has none at the deadline."""
    waiting = {worker.channel: worker for worker in workers}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for channel in wait(list(waiting), timeout=left):
            worker = waiting.pop(channel)
            yield worker, worker.answer(0)
    yield from ((worker, None) for worker in waiting.values())


def failed(task: Task, reason: str) -> Forward:
    return Forward(model=task.model, method=task.method, batch=task.batch, status="failed", reason=reason)
