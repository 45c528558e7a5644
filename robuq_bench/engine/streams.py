"""Small kernels beside the main ones: work that nobody waits for yet goes to a second CUDA stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from robuq_bench.engine.kernels import jit


class Beside:
    """`with beside() as wait:` runs what follows on a second stream; `wait()` makes the current stream wait for it.

    Works inside a graph capture. What is made there may be freed any time after `wait`: the second stream itself waits
    for the first one before it starts anything again. The launch that joins both is an ordinary one: an early one, in a
    graph, was seen to read what the second stream had not finished.
    """

    def __init__(self):
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], None]]:
        self._stream, done = self._stream or torch.cuda.Stream(), torch.cuda.Event()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield lambda: _join(done)
            done.record()


def _join(done: torch.cuda.Event) -> None:
    torch.cuda.current_stream().wait_event(done)
    jit.join()


class InOrder:
    """The same on a CPU, where nothing runs beside anything."""

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], None]]:
        yield lambda: None
