"""Rectified flow: the one loss of full-precision training and QAT (arXiv 2209.03003; times as in arXiv 2403.03206)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.data import ImageSet
from robuq_bench.models.dit import predict
from robuq_bench.seeds import seed

HELD_OUT_TIMES = 8


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

    def to(self, device: str) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in ("x", "time", "labels", "target")))


def draw(signal: Tensor, labels: Tensor, size: int, no_class: int, dropout: float, draw_seed: int) -> Batch:
    """A training batch that depends on `draw_seed` alone, so that a resumed run sees the same data.

    Drawn where `signal` lies: a GPU draws other numbers than a CPU from the same seed.
    """
    device = signal.device
    generator = torch.Generator(device).manual_seed(draw_seed)
    index = torch.randint(len(signal), (size,), generator=generator, device=device)
    noise = torch.randn((size, *signal.shape[1:]), generator=generator, device=device)
    time = torch.sigmoid(torch.randn(size, generator=generator, device=device))
    dropped = torch.rand(size, generator=generator, device=device) < dropout
    return _noised(signal[index], labels[index].masked_fill(dropped, no_class), noise, time)


def _noised(signal: Tensor, labels: Tensor, noise: Tensor, time: Tensor) -> Batch:
    share = time[:, None, None, None]
    return Batch((1 - share) * signal + share * noise, time, labels, noise - signal)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the predicted velocity."""
    return (predict(model, batch.x, batch.time, batch.labels).float() - batch.target).square().mean()


@torch.no_grad()
def taught(teacher: nn.Module, batch: Batch) -> Batch:
    """The batch with the teacher's output as target."""
    return replace(batch, target=predict(teacher, batch.x, batch.time, batch.labels).float())


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: ImageSet, device: str, size: int = 128) -> tuple[float, float]:
    """(loss, loss of predicting zero) on held-out images with fixed noise and evenly spread times.

    The second is the mean square of the target: a model that does not beat it has learnt, or kept, nothing.
    """
    signal, labels = to_signal(held_out.images), torch.from_numpy(held_out.labels)
    total, trivial, count = 0.0, 0.0, 0
    size = min(size, len(signal))
    for start in range(0, len(signal) - size + 1, size):
        generator = torch.Generator().manual_seed(seed("held-out", start))
        part = slice(start, start + size)
        noise = torch.randn(signal[part].shape, generator=generator)
        time = ((torch.arange(size) + start // size) % HELD_OUT_TIMES + 0.5) / HELD_OUT_TIMES
        batch = _noised(signal[part], labels[part], noise, time).to(device)
        total += loss(model, batch).item()
        trivial += batch.target.square().mean().item()
        count += 1
    return total / count, trivial / count
