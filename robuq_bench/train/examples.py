"""What a model is trained and tried on: the pixels of a preset, or its latents."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robuq_bench.config.preset import Preset
from robuq_bench.data import ImageSet
from robuq_bench.data.images import split_indices
from robuq_bench.data.latents import Cache, check_scale, open_cache
from robuq_bench.errors import BenchError
from robuq_bench.models.dit import Shape
from robuq_bench.seeds import seed
from robuq_bench.train.images import images
from robuq_bench.train.objective import to_signal
from robuq_bench.train.processes import PROCESSES, Process


class LatentSignal:
    """Latents of some images of a cache, indexed like a tensor [N, C, h, w]; read from disk as they are asked for.

    With both orientations example i is image i // 2, mirrored when i is odd. Values are scaled, float32, on `device`.
    """

    def __init__(self, cache: Cache, images: np.ndarray, orientations: int, scale: float, device: str = "cpu"):
        self.cache, self.images, self.orientations, self.scale = cache, images, orientations, scale
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.shape = (len(self), *cache.latent)

    def __len__(self) -> int:
        return len(self.images) * self.orientations

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        image, orientation = np.divmod(index.cpu().numpy(), self.orientations)
        found = torch.from_numpy(self.cache.take(self.images[image], orientation))
        return found.to(self.device).float() * self.scale

    def to(self, device: str | torch.device) -> "LatentSignal":
        return LatentSignal(self.cache, self.images, self.orientations, self.scale, str(device))


@dataclass(frozen=True)
class Examples:
    """`signal` float32 [N, C, H, W], a tensor or LatentSignal; `labels` int64 [N]; `shape`: what a model of them is.

    `process`: the noise and target of their preset; `count`: images behind them; `digest`: of their contents.
    """

    signal: Tensor | LatentSignal
    labels: Tensor
    shape: Shape
    process: Process
    count: int
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Examples":
        """The first `count`, or all when there are fewer, in memory."""
        count = min(count, len(self))
        return replace(self, signal=self.signal[:count], labels=self.labels[:count], count=count)


def examples(preset: Preset) -> tuple[Examples, Examples]:
    """(training examples, held-out examples). Raises BenchError when data are missing or damaged, or do not fit."""
    if preset.latents is None:
        train, held_out = images(preset)
        return of_images(train, preset.objective), of_images(held_out, preset.objective)
    cache = open_cache(Path(preset.latents.cache).expanduser())
    shape = model_shape(preset, len(cache.index["classes"]))
    _check(cache, preset, shape)
    cache.verify()  # ImageNet's 21 GB in a minute at most, which is little before hours of training on them
    train, held_out = split_indices(cache.labels, preset.data.held_out, seed("split"))
    return _latents(preset, cache, shape, train, cache.orientations), _latents(preset, cache, shape, held_out, 1)


def model_shape(preset: Preset, classes: int) -> Shape:
    """What the model of a preset that trains on latents sees."""
    return Shape(preset.side, preset.latents.channels, classes, variance=preset.objective == "ddpm")


def of_images(part: ImageSet, objective: str = "flow") -> Examples:
    """The pixels of `part` as examples."""
    _, side, _, channels = part.images.shape
    shape = Shape(side, channels, len(part.classes), variance=objective == "ddpm")
    signal, labels = to_signal(part.images), torch.from_numpy(part.labels)
    return Examples(signal, labels, shape, PROCESSES[objective], len(part), part.digest)


def _latents(preset: Preset, cache: Cache, shape: Shape, chosen: np.ndarray, orientations: int) -> Examples:
    signal = LatentSignal(cache, chosen, orientations, preset.latents.scale)
    labels = torch.from_numpy(np.repeat(cache.labels[chosen], orientations))
    return Examples(signal, labels, shape, PROCESSES[preset.objective], len(chosen), cache.digest)


def _check(cache: Cache, preset: Preset, shape: Shape) -> None:
    """Raises BenchError when the cache was made for another preset, or the preset's scale does not fit it."""
    expected = preset.data.classes or shape.classes
    wanted = {
        "size": (cache.index["size"], preset.data.size),
        "latents": (list(cache.latent), [shape.channels, shape.size, shape.size]),
        "classes": (shape.classes, expected),
        "orientations": (cache.orientations, 2 if preset.latents.flip else 1),
    }
    for name, (theirs, ours) in wanted.items():
        if theirs != ours:
            raise BenchError(
                f"{cache.folder}: encoded for another preset: {name} {theirs} there and {ours} here; give another "
                "folder as latents.cache, or encode again"
            )
    check_scale(cache.folder, cache.index["spread"], preset.latents.scale)
