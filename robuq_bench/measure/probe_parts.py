"""The parts that a probe times: training steps, denoisers, feature extractors, the autoencoder; random weights in all.

A part is made for a batch and handed back as a call; making it takes seconds, a call milliseconds.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.utils.data import Dataset

from robuq_bench.config.preset import Training
from robuq_bench.config.recipe import load_variant
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.errors import BenchError
from robuq_bench.measure import engine_methods as methods
from robuq_bench.measure.agreement import SLACK, relative_error, round_as_deployed
from robuq_bench.measure.engine_methods import METHODS, SHAPE, SIZES
from robuq_bench.measure.engine_records import Check
from robuq_bench.metrics import load_extractor
from robuq_bench.metrics.inception import GPU_BATCH, torch_fidelity_network
from robuq_bench.models import dit
from robuq_bench.models.vae import Autoencoder
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.sample.simulated import denoiser
from robuq_bench.train.captured import Captured
from robuq_bench.train.objective import Batch
from robuq_bench.train.update import Update, quick

MODEL, ENGINE = "XL/2", "W1.58A2"
PIXELS = 256
FULL, QUANTISED, NAME = "full_precision/W32A32", "robuq_uniform/W1.58A2", "RobuQ W1.58A2, uniform bits"
MANY = 2048  # images of a call that is over in moments: beginning and end of a pipeline count little
COMPARED = 8  # images of the deployed model that are checked
PLAN = Training(
    steps=1, batch=1, threads=1, lr=1e-5, warmup=0, ema=0.999, save_every=1, precision="bfloat16", compile=True
)


@dataclass(frozen=True)
class Ready:
    """`call(turn)` takes `batch` images through a part. check: how well it does so, where that is a question, once it
    has been called a few times; it raises BenchError when the part is not what is to be timed. keep: what must live as
    long.
    """

    call: Callable[[int], Any]
    batch: int
    check: Callable[[], Check | None] = lambda: None
    keep: Any = None


@dataclass(frozen=True)
class Part:
    """What it is, in words; how it is made for a batch; the batch to try first, halved while memory does not do.

    gib: of GPU memory that it takes, as measured on an H100 and a little more.
    """

    what: str
    make: Callable[[int], Ready]
    batch: int
    gib: float


def training(row: str, batch: int) -> Ready:
    """A training step as `robuq-bench train` takes it on a GPU: a replayed CUDA graph over compiled blocks."""
    variant = load_variant(*row.rsplit("/", 1))
    if variant.method.low_rank is not None:  # the branch starts from zero, which costs no SVD and the same step
        blank = variant.method.low_rank.model_copy(update={"init": "zero"})
        variant = variant.model_copy(update={"method": variant.method.model_copy(update={"low_rank": blank})})
    model = _built().cpu()
    model = convert(model, variant, uniform_bits(model, variant), 0).to(methods.DEVICE).train()
    step = Captured(Update(model, PLAN))
    x, target = (torch.randn(batch, SHAPE.channels, SHAPE.size, SHAPE.size) for _ in range(2))
    given = Batch(x, torch.rand(batch), torch.randint(SHAPE.classes, (batch,)), target).to(methods.DEVICE)
    context = ExitStack()
    context.enter_context(quick(model, PLAN))

    def call(turn: int) -> torch.Tensor:
        step.prepare(turn, PLAN.lr)
        return step(given)

    def recorded() -> None:
        if step.graph is None:
            raise BenchError("the step could not be recorded as a CUDA graph, which is how training runs it")

    return Ready(call, batch, recorded, context)


def _built() -> nn.Module:
    """The model with random weights, made on the device: a CPU would take seconds."""
    with torch.device(methods.DEVICE):
        return dit.build(SIZES[MODEL], SHAPE)


def full_precision(precision: str, batch: int) -> Ready:
    """The full-precision model as `robuq-bench sample` draws images with it."""
    return Ready(_denoising(denoiser(_built(), precision, methods.DEVICE), batch), batch)


def simulated(precision: str, batch: int) -> Ready:
    """The fake-quantised model of a packed file, as `robuq-bench sample` draws images with it."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = packed.load(_packed(folder))
    return Ready(_denoising(denoiser(model, precision, methods.DEVICE), batch), batch)


def deployed(batch: int) -> Ready:
    """The engine's denoiser of a packed file, compared with the simulated one."""
    with tempfile.TemporaryDirectory() as folder:
        path = _packed(folder)
        expected, rounded = _answers(path)
        call = _denoising(deploy(path, methods.DEVICE), batch)

    def check() -> Check:
        error = relative_error(call(0)[:COMPARED].float().cpu(), expected[:batch])
        bound = SLACK * relative_error(rounded[:batch], expected[:batch])
        return Check(error=error, bound=bound, against="the simulated model of the same packed file")

    return Ready(call, batch, check)


def _packed(folder: str) -> Path:
    path = Path(folder) / "packed.safetensors"
    methods.write_packed(METHODS[ENGINE], SIZES[MODEL], path)
    return path


def _answers(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the simulated model says of COMPARED images, and what it says when it rounds as the engine does."""
    model, _ = packed.load(path)
    call = _denoising(denoiser(model, "float32", methods.DEVICE), COMPARED)
    expected = call(0).float().cpu()
    round_as_deployed(model)
    return expected, call(0).float().cpu()


def _denoising(model: Callable, batch: int) -> Callable[[int], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, SHAPE.channels, SHAPE.size, SHAPE.size, generator=generator).to(methods.DEVICE)
    times = (torch.arange(batch) * 37.0 % 1000).to(methods.DEVICE)
    labels = (torch.arange(batch) % SHAPE.classes).to(methods.DEVICE)

    @torch.inference_mode()
    def call(turn: int) -> torch.Tensor:
        return model(x, timestep=times, class_labels=labels).sample

    return call


def features(extractor: str, batch: int, weights: Path | None = None) -> Ready:
    """Features of images as `robuq-bench evaluate` takes them, transfers included."""
    images = _pixels(batch)
    network = load_extractor(extractor, weights, methods.DEVICE)
    return Ready(lambda turn: network.features(images), batch)


def inception(batch: int, weights: Path | None) -> Ready:
    """Those of the published FID's network, with any weights. Raises BenchError when none are given."""
    return features("InceptionStandin", batch, _given(weights))


def torch_fidelity(batch: int, weights: Path | None) -> Ready:
    """The same images through torch-fidelity's own network and loop. Raises BenchError when no weights are given."""
    from torch_fidelity.utils import get_featuresdict_from_dataset

    network = torch_fidelity_network(_given(weights)).to(methods.DEVICE)
    images = Images(_pixels(batch))
    cuda = methods.DEVICE == "cuda"
    return Ready(lambda turn: get_featuresdict_from_dataset(images, network, GPU_BATCH, cuda, True, False), batch)


class Images(Dataset):
    """uint8 images in memory as torch-fidelity wants them, [3, H, W] each."""

    def __init__(self, images: np.ndarray):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)


def _given(weights: Path | None) -> Path:
    if weights is None:
        raise BenchError("no weights were given (--inception)")
    return weights


def autoencoder(direction: str, batch: int) -> Ready:
    """The autoencoder of latent diffusion models (8 times smaller, 4 channels), float32, transfers included."""
    with torch.device(methods.DEVICE):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    vae = Autoencoder(model.eval().requires_grad_(False), 0.18215, "random", methods.DEVICE)
    images, noise = torch.rand(batch, 3, PIXELS, PIXELS) * 2 - 1, torch.randn(batch, 4, PIXELS // 8, PIXELS // 8)
    calls = {"encode": lambda turn: vae.encode(images, noise), "decode": lambda turn: vae.decode(noise, batch)}
    return Ready(calls[direction], batch)


def parts(weights: Path | None = None) -> dict[str, Part]:
    """Part -> how it is made, what plans need most first. weights: of the Inception network, or None."""
    faithful = "forward pass with fake quantisation in {}, " + NAME
    return {
        "train full precision": Part(
            "training step, bfloat16 autocast, AdamW and EMA in float32", partial(training, FULL), 16, 17
        ),
        "train quantised": Part(f"the same with fake quantisation, {NAME}", partial(training, QUANTISED), 16, 19),
        "denoise deployed": Part(f"forward pass of the engine, {NAME}", deployed, 64, 5),
        "denoise full precision bfloat16": Part("forward pass in bfloat16", partial(full_precision, "bfloat16"), 32, 5),
        "denoise simulated bfloat16": Part(faithful.format("bfloat16"), partial(simulated, "bfloat16"), 32, 4),
        "features Inception": Part("Inception-v3, images to features", partial(inception, weights=weights), MANY, 3),
        "features torch-fidelity": Part(
            f"the same by torch-fidelity, images in memory, batches of {GPU_BATCH}, TF32 (PyTorch's default)",
            partial(torch_fidelity, weights=weights),
            MANY,
            5,
        ),
        "encode latents": Part("autoencoder, images to latents, float32", partial(autoencoder, "encode"), 8, 3),
        "decode latents": Part("autoencoder, latents to images, float32", partial(autoencoder, "decode"), 8, 3),
        "denoise full precision float32": Part("forward pass in float32", partial(full_precision, "float32"), 16, 4),
        "denoise simulated float32": Part(faithful.format("float32"), partial(simulated, "float32"), 16, 4),
        "features EffNetLite0": Part(
            "EfficientNet-Lite0, images to features", partial(features, "EffNetLite0"), 512, 2
        ),
        "features EffNetLite2": Part(
            "EfficientNet-Lite2, images to features", partial(features, "EffNetLite2"), 512, 2
        ),
    }
