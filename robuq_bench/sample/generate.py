"""Images from a denoiser: diffusers schedulers, classifier-free guidance, one generator per image seed."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Tensor

from robuq_bench.config.preset import Sampling
from robuq_bench.errors import BenchError
from robuq_bench.models.dit import Shape
from robuq_bench.seeds import seed
from robuq_bench.train.objective import to_images

Denoiser = Callable[..., Any]
"""model(x [B, C, H, W], timestep=[B], class_labels=[B]).sample: diffusers' DiT, simulated or deployed."""
SCHEDULERS = {"flow_euler": FlowMatchEulerDiscreteScheduler, "flow_heun": FlowMatchHeunDiscreteScheduler}


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
        images = _lane(model, shape, seeds, plan, device)
        drawn.update(zip(seeds, images, strict=True))
        advance(sum(s in set(wanted) for s in seeds))
    labels = np.array([image_class(s, shape.classes) for s in wanted], dtype=np.int64)
    return np.stack([drawn[s] for s in wanted]), labels


def _lane(model: Denoiser, shape: Shape, seeds: range, plan: Sampling, device: str) -> np.ndarray:
    x = torch.stack([initial_noise(s, shape) for s in seeds]).to(device)
    labels = torch.tensor([image_class(s, shape.classes) for s in seeds], device=device)
    scheduler = SCHEDULERS[plan.scheduler]()
    scheduler.set_timesteps(plan.steps)
    for time in scheduler.timesteps:
        velocity = _guided(model, x, time.to(device), labels, shape.classes, plan.guidance)
        x = scheduler.step(velocity, time, x).prev_sample
    if not torch.isfinite(x).all():
        raise BenchError(f"sampling image seeds {seeds[0]} to {seeds[-1]} gave values that are not finite")
    return to_images(x)


def _guided(model: Denoiser, x: Tensor, time: Tensor, labels: Tensor, no_class: int, guidance: float) -> Tensor:
    """Velocity with classifier-free guidance: v_none + guidance * (v_class - v_none) (arXiv 2207.12598)."""
    if guidance == 1:
        return model(x, timestep=time.expand(len(x)), class_labels=labels).sample
    both = torch.cat([labels, torch.full_like(labels, no_class)])
    output = model(torch.cat([x, x]), timestep=time.expand(2 * len(x)), class_labels=both).sample
    with_class, without = output.chunk(2)
    return without + guidance * (with_class - without)
