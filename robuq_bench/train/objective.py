"""Training batches, and the one loss of full-precision training and QAT, for any process (train.processes)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.models.dit import predict
from robuq_bench.train.processes import PROCESSES, Process

FLOW = PROCESSES["flow"]
ALL = slice(None)


def to_signal(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(signal: Tensor) -> np.ndarray:
    """float [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]; values outside are clipped."""
    levels = ((signal.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@dataclass(frozen=True)
class Batch:
    """Noisy inputs [B, C, H, W], times [B], labels [B] and targets [B, C, H, W]."""

    x: Tensor
    time: Tensor
    labels: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def split(self, size: int | None) -> list["Batch"]:
        """Parts of `size` images, the last may be smaller; None: one part."""
        parts = (getattr(self, name).split(size or len(self)) for name in ("x", "time", "labels", "target"))
        return [Batch(*part) for part in zip(*parts, strict=True)]

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in ("x", "time", "labels", "target")))


def draw(
    signal: Tensor,
    labels: Tensor,
    size: int,
    no_class: int,
    dropout: float,
    draw_seed: int,
    process: Process = FLOW,
    part: slice = ALL,
) -> Batch:
    """A training batch that depends on `draw_seed` alone, so that a resumed run sees the same data; or a part of it.

    Drawn where `signal` lies: a GPU draws other numbers than a CPU from the same seed.
    """
    device = signal.device
    generator = torch.Generator(device).manual_seed(draw_seed)
    index = torch.randint(len(signal), (size,), generator=generator, device=device)
    noise = torch.randn((size, *signal.shape[1:]), generator=generator, device=device)
    time = process.times(size, generator, device)
    dropped = torch.rand(size, generator=generator, device=device) < dropout
    index, dropped = index[part], dropped[part]
    return noised(signal[index], labels[index].masked_fill(dropped, no_class), noise[part], time[part], process)


def noised(signal: Tensor, labels: Tensor, noise: Tensor, time: Tensor, process: Process = FLOW) -> Batch:
    x, target = process.noised(signal, noise, time)
    return Batch(x, time, labels, target)


def loss(model: nn.Module, batch: Batch, process: Process = FLOW) -> Tensor:
    """[] float32: how far the model's output is from the target, as the process judges it."""
    return process.loss(predict(model, batch.x, batch.time, batch.labels), batch.x, batch.time, batch.target)


@dataclass(frozen=True)
class Teacher:
    """A model whose output makes up `share` of the training target; the data's own target is the rest.

    The gradient of the squared error to that mixture is the mixture of the two losses' gradients.
    """

    model: nn.Module
    share: float = 1.0


@torch.no_grad()
def taught(teacher: Teacher, batch: Batch, process: Process = FLOW) -> Batch:
    """The batch with the teacher's share in its target."""
    output = predict(teacher.model, batch.x, batch.time, batch.labels)
    return replace(batch, target=process.taught(batch.target, output, teacher.share))
