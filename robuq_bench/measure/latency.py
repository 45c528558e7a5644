"""How long a forward pass takes: warm-up apart, varied inputs, median and spread."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

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


@torch.inference_mode()
def time_forward(model: nn.Module, shape: Shape, batch: int, repeats: int, device: str) -> Timing:
    """Time `repeats` forward passes of `batch` images, each on fresh random inputs."""
    generator = torch.Generator().manual_seed(0)
    taken = []
    for turn in range(WARM_UP + repeats):
        x = torch.randn((batch, shape.channels, shape.size, shape.size), generator=generator).to(device)
        moment = torch.rand(batch, generator=generator).to(device)
        labels = torch.randint(shape.classes, (batch,), generator=generator).to(device)
        _wait(device)
        start = time.perf_counter()
        predict(model, x, moment, labels)
        _wait(device)
        if turn >= WARM_UP:
            taken.append((time.perf_counter() - start) * 1e3)
    p20, median, p80 = np.percentile(taken, [20, 50, 80])
    return Timing(float(median), float(p20), float(p80), batch, repeats)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
