"""What an extractor is, and how images stream through one: fixed batches in float32, on the CPU or a GPU."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robuq_bench.errors import BenchError
from robuq_bench.metrics.batches import batched

SPATIAL_CHANNELS = 7  # ADM's sFID keeps the first 7 channels of one convolution


@dataclass(frozen=True)
class Source:
    """What made some features: features compare only when all three fields agree.

    name: the extractor. digest: SHA-256 of its weights. protocol: the way from pixels to features, in words.
    """

    name: str
    digest: str
    protocol: str


@dataclass(frozen=True, eq=False)
class Features:
    """Features of N images, each array float32.

    pooled [N, d]: for FD, KID, precision, recall; spatial [N, s]: for sFD; probabilities [N, classes]: IS.
    """

    pooled: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray
    source: Source

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: slice | np.ndarray) -> "Features":
        return Features(self.pooled[rows], self.spatial[rows], self.probabilities[rows], self.source)


class Extractor(ABC):
    """Images in, features out. A subclass sets the fields and defines `forward`.

    batch: images computed together. It is fixed, and the last batch is padded, because float sums may depend
    on it: so the features of an image do not depend on how many there are.
    resolution: side in pixels of the network's input.
    """

    name: str
    digest: str
    protocol: str
    resolution: int
    batch: int
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [batch, C, H, W], C = 1 or 3 -> (pooled, spatial, probabilities), each float32 [batch, ·]."""

    @property
    def source(self) -> Source:
        return Source(self.name, self.digest, self.protocol)

    def features(self, images: np.ndarray, progress: Callable[[int], None] = lambda done: None) -> Features:
        """Features of `images`, uint8 [N, H, W, C] with C = 1 or 3; `progress` gets how many images each batch adds.

        Raises BenchError for images of another form and for none.
        """
        _check(images)
        parts = []
        with _exact_float32():
            for arrays in batched(self.forward, images, self.batch, self.device):
                parts.append(arrays)
                progress(len(arrays[0]))
        return Features(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), self.source)


def as_rgb(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] -> [N, 3, H, W], grey repeated."""
    return images.expand(-1, 3, -1, -1)


def flatten_spatial(maps: Tensor) -> Tensor:
    """First 7 channels of [N, C, H, W] as [N, H·W·7], channels innermost.

    The order is that of a TensorFlow NHWC tensor, as in ADM's sFID. Any fixed order gives the same distance;
    this one fits statistics made elsewhere.
    """
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise BenchError(
            f"features: expected uint8 [N, H, W, 1 or 3] with N > 0, got {images.dtype} {list(images.shape)}"
        )


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Inference without TF32 and with deterministic kernels, whatever the caller has set for training."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with flags, torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
