"""Progress of long work on stderr: a bar with ETA on a terminal, a line now and then elsewhere; all of it logged."""

import logging
import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG = logging.getLogger("robuq_bench")
LINE_EVERY = 15.0  # seconds between lines when stderr is not a terminal


class Bar:
    """Use as a context: `with Bar("train robuq", 400) as bar: bar.advance(1, loss=0.2)`."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done, self.first = label, total, done, done
        self.started = self.printed = time.monotonic()
        self.rich = None
        if sys.stderr.isatty():
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
            columns += [TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[facts]}")]
            self.rich = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "Bar":
        if self.rich:
            self.rich.start()
            self.task = self.rich.add_task(self.label, total=self.total, completed=self.done, facts="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.rich:
            self.rich.stop()
        LOG.info("%s: %d/%d in %.1f s", self.label, self.done, self.total, time.monotonic() - self.started)

    def advance(self, amount: int = 1, **facts: float) -> None:
        self.done += amount
        text = " ".join(f"{name} {value:.4g}" for name, value in facts.items())
        if self.rich:
            self.rich.update(self.task, completed=self.done, facts=text)
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY:
            self.printed = now
            rate = (self.done - self.first) / (now - self.started)
            left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
            line = f"{self.label}: {self.done}/{self.total}, ETA {left} {text}"
            LOG.info(line)
            if not self.rich:
                print(line, file=sys.stderr, flush=True)
