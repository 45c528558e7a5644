"""What noise is added in training and what the model must then predict: rectified flow, or DiT's diffusion.

A process draws times in [0, 1) (1 is pure noise), mixes signal and noise, and judges a prediction.
"""

import math
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

STEPS = 1000
BETA = (1e-4, 0.02)
"""DiT's diffusion: linear betas over 1000 steps (arXiv 2006.11239, sec. 4; arXiv 2212.09748, sec. 4)."""


class Process(Protocol):
    """Signals, noise, noisy inputs and targets are [B, C, H, W], times [B], a model's outputs [B, outputs, H, W]."""

    def times(self, count: int, generator: Generator | None, device: torch.device) -> Tensor: ...

    def noised(self, signal: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(noisy input, target)."""

    def loss(self, output: Tensor, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        """[] float32, the mean over the batch."""

    def taught(self, target: Tensor, output: Tensor, share: float) -> Tensor:
        """The target with `share` of a teacher's output in it."""


class Flow:
    """Rectified flow: the velocity noise - signal (arXiv 2209.03003; times as in arXiv 2403.03206)."""

    def times(self, count: int, generator: Generator | None, device: torch.device) -> Tensor:
        return torch.sigmoid(torch.randn(count, generator=generator, device=device))

    def noised(self, signal: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        share = time[:, None, None, None]
        return (1 - share) * signal + share * noise, noise - signal

    def loss(self, output: Tensor, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        return (output.float() - target).square().mean()

    def taught(self, target: Tensor, output: Tensor, share: float) -> Tensor:
        return torch.lerp(target, output.float(), share)


class Ddpm:
    """DiT's diffusion: the model predicts the noise [B, C, H, W] and, in C more channels, where the variance lies.

    Loss: mean squared error of the noise plus the variational bound in bits, whose gradient reaches the variance alone
    (arXiv 2102.09672, sec. 3.1; the bound is not reweighted, as in DiT). Time k / 1000 is step k of 0 ... 999.
    """

    def _at(self, time: Tensor) -> tuple[Tensor, ...]:
        """The rows of `tables` at each time, [B, 1, 1, 1] each."""
        found = tables(time.device)[:, (time * STEPS).round().long()]
        return tuple(found[:, :, None, None, None])

    def times(self, count: int, generator: Generator | None, device: torch.device) -> Tensor:
        return torch.randint(STEPS, (count,), generator=generator, device=device) / STEPS

    def noised(self, signal: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        kept, added, _, _ = self._at(time)
        return kept * signal + added * noise, noise

    def loss(self, output: Tensor, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        output = output.float()
        if target.shape == output.shape:  # a teacher's, variance included
            return (output - target).square().mean()
        noise, where = output.chunk(2, 1)
        return (noise - target).square().mean() + self._bound(noise.detach(), where, x, time, target)

    def taught(self, target: Tensor, output: Tensor, share: float) -> Tensor:
        """Noise in part the teacher's, the variance all of it: the data do not say what a variance should be."""
        noise, where = output.float().chunk(2, 1)
        return torch.cat([torch.lerp(target, noise, share), where], 1)

    def _bound(self, noise: Tensor, where: Tensor, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        """Mean of the variational bound's term at each time, in bits per dimension."""
        kept, added, log_beta, log_posterior = self._at(time)
        log_variance = torch.lerp(log_posterior, log_beta, (where + 1) / 2)
        beta = log_beta.exp()
        # Both means are (x - beta noise / added) / sqrt(1 - beta), so their difference is that of the noises.
        shift = beta / (added * (1 - beta).sqrt()) * (noise - target)
        divergence = 0.5 * (
            log_variance
            - log_posterior
            + (log_posterior - log_variance).exp()
            + shift.square() * (-log_variance).exp()
            - 1
        )
        clean = (x - added * target) / kept
        last = -_log_probability(clean, clean - shift, log_variance)
        first_step = (time * STEPS).round()[:, None, None, None] == 0
        return torch.where(first_step, last, divergence).mean() / math.log(2)


@cache
def tables(device: torch.device) -> Tensor:
    """float32 [4, 1000]: sqrt of the signal's and of the noise's share; log beta; log posterior variance.

    Kept on each device: a CUDA graph must not copy them there.
    """
    betas = np.linspace(*BETA, STEPS)
    kept = np.cumprod(1 - betas)
    before = np.append(1.0, kept[:-1])
    posterior = betas * (1 - before) / (1 - kept)
    posterior[0] = posterior[1]  # zero, whose logarithm is of no use; that step has no posterior
    rows = np.stack([np.sqrt(kept), np.sqrt(1 - kept), np.log(betas), np.log(posterior)])
    return torch.from_numpy(rows).float().to(device)


def _log_probability(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of a normal's mass in the cell of width 2/255 around x; the outermost cells, at +-1, have no outer edge."""
    scale = (-0.5 * log_variance).exp()
    below, above = (torch.special.ndtr(scale * (x - mean + edge)) for edge in (-1 / 255, 1 / 255))
    below, above = torch.where(x < -0.999, 0.0, below), torch.where(x > 0.999, 1.0, above)
    return (above - below).clamp_min(1e-12).log()


PROCESSES: dict[str, Process] = {"flow": Flow(), "ddpm": Ddpm()}
"""By the preset's `objective`."""
