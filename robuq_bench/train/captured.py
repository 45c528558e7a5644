"""The training step as a CUDA graph: recorded once, then replayed with new inputs by a single launch.

A step of a small model is hundreds of kernels of a few microseconds each: issued one by one from Python they take
longer than they run. A replay is the same kernels on the same memory; inputs are copied to where they read them.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from robuq_bench.progress import LOG
from robuq_bench.train.objective import Batch
from robuq_bench.train.update import Update

WARMUP = 3
"""Plain steps before a recording: they compile kernels, choose algorithms and allocate what stays."""


class Captured:
    """`update`, an Update of a model on a CUDA device, as a graph. Every call is a step of training.

    The first WARMUP calls issue the step plainly, the next records it. When other parameters come to be trained (the
    phases of a recipe) the recording is thrown away, and the same starts again. A step that cannot be recorded is
    logged as such, and all steps are then issued plainly.
    """

    def __init__(self, update: Update):
        self.update = update
        self.stream = torch.cuda.Stream()  # recording is not possible on the default stream
        self.trained: tuple[bool, ...] = ()
        self.plain = 0  # plain steps still to go; infinite once recording has failed
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Batch | None = None
        self.loss: Tensor | None = None

    def prepare(self, *facts: Any) -> None:
        self.update.prepare(*facts)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss [] of one step on `batch`, whose shapes are those of every other batch."""
        trained = tuple(p.requires_grad for p in self.update.model.parameters())
        if trained != self.trained:
            self.trained, self.plain = trained, max(self.plain, WARMUP)
            self.graph = self.inputs = self.loss = None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            value = self._step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return value

    def _step(self, batch: Batch) -> Tensor:
        if self.graph is None and not self.plain:
            self._record(batch)
        if self.graph is None:
            self.plain -= 1
            return self.update(batch)
        for field in fields(Batch):
            getattr(self.inputs, field.name).copy_(getattr(batch, field.name))
        self.graph.replay()
        return self.loss.clone()

    def _record(self, batch: Batch) -> None:
        self.inputs = Batch(*(getattr(batch, field.name).clone() for field in fields(Batch)))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self.update(self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            LOG.warning("the training step cannot be recorded as a CUDA graph, and is issued plainly: %s", reason)
            self.plain, self.inputs = torch.inf, None
            self.update.optimiser.zero_grad(set_to_none=True)
        else:
            self.graph = graph
