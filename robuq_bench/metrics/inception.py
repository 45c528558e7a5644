"""The Inception-v3 of the published FID (TensorFlow, 2015-12-05), as converted by torch-fidelity, by path.

In float32 the network, its weights and its resizing are torch-fidelity's own, bit for bit. On a GPU `HalfInception`
is the same function made quick: batch normalisations folded into the convolutions, products in float16 with float32
sums, channels last, and one CUDA graph for everything between pixels and features.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robuq_bench.errors import BenchError
from robuq_bench.files import existing, sha256_file
from robuq_bench.metrics.features import Extractor, as_rgb, flatten_spatial
from robuq_bench.metrics.weights import load_weights

CPU_BATCH, GPU_BATCH = 16, 256
FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299
LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
STEPS = (
    "grey repeated to RGB; TensorFlow 1 bilinear to 299x299; (x - 128) / 128; Inception-v3, {}; "
    "spatial: Mixed_6d.branch1x1, 7 channels, NHWC; logits without bias"
)


class Inception(Extractor):
    """ADM's features: pooled 2048 (`pool_3`); spatial 2023: 17×17×7 of `mixed_6/conv`, here Mixed_6d.branch1x1 after
    its ReLU; probabilities: 1,008 classes, softmax without the bias.

    `weights`: the user's copy of torch-fidelity's file; nothing is ever downloaded. float32 on a CPU; float16 products
    on a GPU, which move features by less than 1e-3 (docs/evaluation.md), as TF32 does by torch-fidelity's default.
    Raises BenchError when the file is missing, unsafe or not the published one.
    """

    name = "Inception"
    resolution = SIDE
    published = True  # weights must be the published ones: only their figures may be called FID
    halves = True  # float16 products where there is a GPU

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        if weights is None:
            raise BenchError(
                f"{self.name}: no weights given; set evaluate.weights to your copy of torch-fidelity's {FILE}, "
                "or choose the extractor EffNetLite0"
            )
        path = existing(weights, "weights file")
        self.digest = sha256_file(path)
        self.device = torch.device(device)
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH
        network = torch_fidelity_network(path)  # before the hash: an unsafe file is the worse news
        if self.published and self.digest != SHA256:
            raise BenchError(
                f"{path}: not torch-fidelity's {FILE} (SHA-256 {self.digest[:8]}…, published {SHA256[:8]}…); "
                "get that file, or choose the extractor InceptionStandin, whose figures are not called FID"
            )
        fast = self.halves and self.device.type == "cuda"
        self.protocol = STEPS.format("float16 products with float32 sums" if fast else "float32")
        self._compute = Graphed(HalfInception(network).to(self.device)) if fast else Exact(network.to(self.device))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, maps, logits = self._compute(as_rgb(images))
        return pooled, flatten_spatial(maps), logits.softmax(1)


class InceptionFloat32(Inception):
    """The same in float32 on any device: torch-fidelity's features to rounding, at a third of the speed on a GPU."""

    name = "InceptionFloat32"
    halves = False


class InceptionStandin(Inception):
    """The same network with any weights (random ones, in tests and rehearsals). Its figures are never called FID."""

    name = "InceptionStandin"
    published = False


class Exact:
    """torch-fidelity's network as it is: uint8 [N, 3, H, W] -> pooled, maps of Mixed_6d.branch1x1, logits."""

    def __init__(self, network: nn.Module):
        self.network = network
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.maps = output

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, logits = self.network(images)
        return pooled, self.maps, logits


class HalfInception(nn.Module):
    """The network with folded batch normalisations, float16 and channels last; same arguments and results."""

    def __init__(self, network: nn.Module):
        super().__init__()
        fold(network)
        self.layers = nn.ModuleDict({name: getattr(network, name) for name in LAYERS})
        self.register_buffer("classes", network.fc.weight.detach())
        self.layers["Mixed_6d"].branch1x1.register_forward_hook(self._keep)
        self.to(memory_format=torch.channels_last)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.maps = output

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (resize(images.float(), SIDE) - 128) / 128
        x = x.to(torch.float16, memory_format=torch.channels_last)
        for layer in self.layers.values():
            x = layer(x)
        pooled = x.float().mean((2, 3))
        return pooled, self.maps, pooled @ self.classes.T


class Folded(nn.Module):
    """Convolution with its batch normalisation folded in, then ReLU: one cuDNN call in float16."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d):
        super().__init__()
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        kernel = convolution.weight.double() * scale.view(-1, 1, 1, 1)
        self.register_buffer("kernel", kernel.to(torch.float16).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", (norm.bias - norm.running_mean.double() * scale).to(torch.float16))
        self.geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return torch.cudnn_convolution_relu(x, self.kernel, self.bias, *self.geometry)
        return F.conv2d(x, self.kernel, self.bias, *self.geometry).relu_()


def fold(network: nn.Module) -> None:
    """Replace each convolution with batch normalisation and ReLU in `network` by one `Folded`, in place."""
    for name, child in network.named_children():
        if hasattr(child, "bn"):
            setattr(network, name, Folded(child.conv, child.bn))
        else:
            fold(child)


def resize(x: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resizing (no half-pixel shift, no antialiasing), float32 [N, C, H, W] -> [N, C, S, S].

    Along x, then along y, with the arithmetic of TensorFlow's kernel, so that float32 results are the same bits.
    """
    left, right, share = _neighbours(x.shape[3], side, x.device)
    x = x[..., left] + (x[..., right] - x[..., left]) * share
    top, bottom, share = _neighbours(x.shape[2], side, x.device)
    return x[:, :, top] + (x[:, :, bottom] - x[:, :, top]) * share[:, None]


def _neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of both neighbours, int64 [new], and the share of the second, float32 [new]."""
    position = torch.arange(new, dtype=torch.float32, device=device) * torch.tensor(old / new, dtype=torch.float32)
    first = position.long()
    return first, (first + 1).clamp(max=old - 1), position - first


class Graphed:
    """A network whose kernels are launched as one CUDA graph, recorded once per shape of the images."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]] = {}

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.shape not in self.recorded:
            self.recorded[images.shape] = self._record(images)
        graph, given, results = self.recorded[images.shape]
        given.copy_(images)
        graph.replay()
        return tuple(result.clone() for result in results)

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, ...]]:
        given = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # cuDNN chooses its kernels before they are recorded
            self.network(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.network(given)
        return graph, given, results


def torch_fidelity_network(path: Path) -> nn.Module:
    """torch-fidelity's network with the weights at `path`. Raises BenchError when they are unsafe or others'."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    load_weights(path)  # torch-fidelity would run code in the file: look first
    try:
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    except (RuntimeError, TypeError) as error:
        raise BenchError(f"{path}: not torch-fidelity's Inception weights") from error
