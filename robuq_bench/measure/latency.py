"""How long a forward pass takes: warm-up apart, varied inputs, median and spread."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.models.dit import Shape, predict

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one forward pass: median, 20th and 80th percentile."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    batch: int
    repeats: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def random_inputs(shape: Shape, batch: int, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, times in [0, 1) and labels, new ones without end, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn((batch, shape.channels, shape.size, shape.size), generator=generator)
        moment, labels = (
            torch.rand(batch, generator=generator),
            torch.randint(shape.classes, (batch,), generator=generator),
        )
        yield x.to(device), moment.to(device), labels.to(device)


@torch.inference_mode()
def time_forward(model: nn.Module, shape: Shape, batch: int, repeats: int, device: str) -> Timing:
    """Time `repeats` forward passes of `batch` images, each on fresh random inputs."""
    taken = []
    for turn, given in zip(range(WARM_UP + repeats), random_inputs(shape, batch, device), strict=False):
        _wait(device)
        start = time.perf_counter()
        predict(model, *given)
        _wait(device)
        if turn >= WARM_UP:
            taken.append((time.perf_counter() - start) * 1e3)
    p20, median, p80 = np.percentile(taken, [20, 50, 80])
    return Timing(float(median), float(p20), float(p80), batch, repeats)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
