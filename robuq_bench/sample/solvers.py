"""From the model's outputs to the next, less noisy x: diffusers' schedulers, set up as the objective wants them.

A solver says at which `timesteps` (0 ... 1000) the model is asked, and makes each `step` from its answer.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from torch import Generator, Tensor

from robuq_bench.errors import BenchError
from robuq_bench.train.processes import BETA, STEPS


class Solver(Protocol):
    timesteps: Tensor

    def step(self, output: Tensor, index: int, x: Tensor, generators: list[Generator]) -> Tensor:
        """The next x [B, C, H, W] from the model's output [B, outputs, H, W] at timestep number `index`."""


class FlowSolver:
    """Rectified flow: the output is a velocity; no noise is added, so the generators are not used."""

    def __init__(self, kind: type, steps: int):
        self.scheduler = kind()
        self.scheduler.set_timesteps(steps)
        self.timesteps = self.scheduler.timesteps

    def step(self, output: Tensor, index: int, x: Tensor, generators: list[Generator]) -> Tensor:
        return self.scheduler.step(output, self.timesteps[index], x).prev_sample


class Ddpm:
    """DiT's ancestral sampler: noise of the variance that the model predicts, from each image's own generator."""

    def __init__(self, steps: int):
        self.timesteps = spaced(steps).flip(0)
        self.scheduler = DDPMScheduler(**_respaced(steps), variance_type="learned_range")
        self.scheduler.set_timesteps(steps)

    def step(self, output: Tensor, index: int, x: Tensor, generators: list[Generator]) -> Tensor:
        return self.scheduler.step(output, self.scheduler.timesteps[index], x, generator=generators).prev_sample


class Ddim:
    """The deterministic sampler (arXiv 2010.02502, eta = 0); the predicted variance is not used."""

    def __init__(self, steps: int):
        self.timesteps = spaced(steps).flip(0)
        self.scheduler = DDIMScheduler(**_respaced(steps))
        self.scheduler.set_timesteps(steps)

    def step(self, output: Tensor, index: int, x: Tensor, generators: list[Generator]) -> Tensor:
        noise = output[:, : x.shape[1]]
        return self.scheduler.step(noise, self.scheduler.timesteps[index], x).prev_sample


def spaced(steps: int) -> Tensor:
    """int64 [steps]: which of the 1000 training steps are taken, evenly from the first to the last, as in DiT."""
    if not 2 <= steps <= STEPS:
        raise BenchError(f"sample.steps {steps}: this objective was trained with {STEPS} steps; choose 2 to {STEPS}")
    return torch.linspace(0, STEPS - 1, steps, dtype=torch.float64).round().long()


def _respaced(steps: int) -> dict:
    """Settings of a scheduler over these steps alone: betas from each to the next (arXiv 2102.09672, sec. 4)."""
    kept = np.cumprod(1 - np.linspace(*BETA, STEPS))[spaced(steps).numpy()]
    betas = 1 - kept / np.append(1.0, kept[:-1])
    return {"num_train_timesteps": steps, "trained_betas": betas, "clip_sample": False}


SOLVERS: dict[str, Callable[[int], Solver]] = {
    "flow_euler": lambda steps: FlowSolver(FlowMatchEulerDiscreteScheduler, steps),
    "flow_heun": lambda steps: FlowSolver(FlowMatchHeunDiscreteScheduler, steps),
    "ddpm": Ddpm,
    "ddim": Ddim,
}
"""By the preset's `sample.scheduler`, given the number of steps."""
