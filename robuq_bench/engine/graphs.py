"""CUDA graphs of a function of a batch: one per batch size, captured at first use, replayed without allocation."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT = 8
"""Batch sizes whose graphs are kept; the one unused for longest goes first."""


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphs:
    """`function(*inputs) -> Tensor` as graphs that share one memory pool, so they must be called on one stream.

    Inputs are copied into fixed buffers, the output out of one. Bit-equal to calling the function.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self._function = function
        self._pool: tuple[int, int] | None = None
        self._captured: OrderedDict[int, _Captured] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        batch = len(inputs[0])
        if batch not in self._captured:
            self._captured[batch] = self._capture(inputs)
            if len(self._captured) > KEPT:
                self._captured.popitem(last=False)
        self._captured.move_to_end(batch)
        captured = self._captured[batch]
        for buffer, given in zip(captured.inputs, inputs, strict=True):
            buffer.copy_(given)
        captured.graph.replay()
        return captured.output.clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # The buffers outlive this call, so they must be plain tensors even where the caller is in inference mode.
        with torch.cuda.device(inputs[0].device), torch.inference_mode(False), torch.no_grad():
            buffers = tuple(given.clone() for given in inputs)
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):  # compiles and loads kernels, which a capture may not
                self._function(*buffers)
            here.wait_stream(side)
            free_workspaces()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._function(*buffers)
            free_workspaces()
        return _Captured(graph, buffers, output)


def free_workspaces() -> None:
    """Give back what cuBLAS holds, 32 MiB for every stream it has seen: much beside a model of ternary weights.

    A graph's own workspace lies in the pool, where the next graph takes the same memory.
    """
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
