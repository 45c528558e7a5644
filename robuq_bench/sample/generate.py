"""Images from a denoiser: a solver, classifier-free guidance, one generator per image seed."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robuq_bench.config.preset import Sampling
from robuq_bench.errors import BenchError
from robuq_bench.models.dit import Shape
from robuq_bench.sample.solvers import SOLVERS
from robuq_bench.seeds import seed
from robuq_bench.train.objective import to_images

Denoiser = Callable[..., Any]
"""model(x [B, C, H, W], timestep=[B], class_labels=[B]).sample: diffusers' DiT, simulated or deployed."""
Decode = Callable[[Tensor], np.ndarray]
"""What the model draws [B, C, h, w] -> uint8 images [B, H, W, C]."""


def image_class(image_seed: int, classes: int) -> int:
    """Class of an image: the seeds go round the classes, so every class gets its equal share."""
    return image_seed % classes


def initial_noise(image_seed: int, shape: Shape) -> Tensor:
    """[C, H, W] noise of one image, from its own generator (on the CPU, so that every device starts alike)."""
    generator = torch.Generator().manual_seed(seed("image", image_seed))
    return torch.randn((shape.channels, shape.size, shape.size), generator=generator)


@torch.inference_mode()
def generate(
    model: Denoiser,
    shape: Shape,
    image_seeds: Iterable[int],
    plan: Sampling,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
    decode: Decode = to_images,
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 images [N, H, W, C], int64 labels [N]) of the image seeds, in their order.

    Images are computed in lanes of `plan.lane` consecutive seeds, always whole and always the same ones together,
    so an image depends on the weights and its seed alone, bit for bit, whatever else is asked for. Guidance doubles the
    batch: both halves are one call of the model.
    """
    wanted = list(image_seeds)
    drawn: dict[int, np.ndarray] = {}
    for lane in sorted({s // plan.lane for s in wanted}):
        seeds = range(lane * plan.lane, (lane + 1) * plan.lane)
        images = draw_lane(model, shape, seeds, plan, device, decode)
        drawn.update(zip(seeds, images, strict=True))
        advance(sum(s in set(wanted) for s in seeds))
    labels = np.array([image_class(s, shape.classes) for s in wanted], dtype=np.int64)
    return np.stack([drawn[s] for s in wanted]), labels


@torch.inference_mode()
def draw_lane(
    model: Denoiser, shape: Shape, seeds: range, plan: Sampling, device: str, decode: Decode = to_images
) -> np.ndarray:
    """uint8 images [B, H, W, C] of one lane. Raises BenchError when one is not finite."""
    x = torch.stack([initial_noise(s, shape) for s in seeds]).to(device)
    labels = torch.tensor([image_class(s, shape.classes) for s in seeds], device=device)
    solver = SOLVERS[plan.scheduler](plan.steps)
    generators = [torch.Generator().manual_seed(seed("image steps", s)) for s in seeds]
    for index, time in enumerate(solver.timesteps):
        output = _guided(model, x, time.to(device), labels, shape, plan)
        x = solver.step(output, index, x, generators)
    if not torch.isfinite(x).all():
        raise BenchError(f"sampling image seeds {seeds[0]} to {seeds[-1]} gave values that are not finite")
    return decode(x)


def _guided(model: Denoiser, x: Tensor, time: Tensor, labels: Tensor, shape: Shape, plan: Sampling) -> Tensor:
    """The output with classifier-free guidance, none + guidance * (class - none) (arXiv 2207.12598), in the guided
    channels; of the others, and of a predicted variance, the output with the class."""
    if plan.guidance == 1:
        return model(x, timestep=time.expand(len(x)), class_labels=labels).sample
    both = torch.cat([labels, torch.full_like(labels, shape.classes)])
    output = model(torch.cat([x, x]), timestep=time.expand(2 * len(x)), class_labels=both).sample
    with_class, without = output.chunk(2)
    guided = without + plan.guidance * (with_class - without)
    channels = plan.guided_channels or shape.channels
    return torch.cat([guided[:, :channels], with_class[:, channels:]], 1)
