"""Images through a network in full batches; while a GPU computes one, the next is prepared and the last fetched."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Forward = Callable[[Tensor], Sequence[Tensor]]


class _Launched(NamedTuple):
    """Results on their way to the host; they are there once `done` has passed (None: already)."""

    results: list[Tensor]
    count: int
    done: torch.cuda.Event | None

    def arrays(self) -> list[np.ndarray]:
        if self.done:
            self.done.synchronize()
        return [result[: self.count].numpy().copy() for result in self.results]


def batched(forward: Forward, images: np.ndarray, batch: int, device: torch.device) -> Iterator[list[np.ndarray]]:
    """Results of `forward`, which takes uint8 [batch, C, H, W] on `device`, for each batch of `images` [N, H, W, C].

    `images` need only have a shape and give slices, so it may lie on disk. The last batch is filled up with zeros, and
    the results of the filling are dropped.
    """
    cuda = device.type == "cuda"
    staging = [torch.zeros((batch, *images.shape[1:]), dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
    before = None
    for number, start in enumerate(range(0, len(images), batch)):
        launched = _launch(forward, images[start : start + batch], staging[number % 2], device)
        if before:
            yield before.arrays()
        before = launched
    if before:
        yield before.arrays()


def _launch(forward: Forward, images: np.ndarray, staging: Tensor, device: torch.device) -> _Launched:
    count = len(images)
    staging.numpy()[:count] = images
    staging[count:] = 0
    results = forward(staging.to(device, non_blocking=True).permute(0, 3, 1, 2))
    if device.type != "cuda":
        return _Launched(list(results), count, None)
    hosts = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
    for host, result in zip(hosts, results, strict=True):
        host.copy_(result, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return _Launched(hosts, count, done)
