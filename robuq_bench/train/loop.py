"""One training loop for full precision and QAT: AdamW, warm-up and cosine, EMA, resumable to the step."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from robuq_bench.config.preset import Training
from robuq_bench.config.recipe import Phase
from robuq_bench.errors import Diverged
from robuq_bench.models.dit import layer_type, linears
from robuq_bench.progress import Bar
from robuq_bench.quant.timed import timed_quantisers
from robuq_bench.seeds import seed
from robuq_bench.train.objective import Batch, draw, loss, taught
from robuq_bench.train.state import State

CHECK_EVERY = 50
"""Steps between looks at the loss on a GPU, which runs ahead meanwhile; on a CPU every step is looked at."""


@dataclass
class Outcome:
    """Averaged weights and the loss of every step."""

    weights: dict[str, Tensor]
    losses: list[float]


def learning_rate(step: int, plan: Training) -> float:
    """Linear warm-up, then cosine from `lr` to `lr * final_lr`."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(plan.steps - plan.warmup, 1)
    return plan.lr * (plan.final_lr + (1 - plan.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


class Average:
    """Exponential moving average of the trainable weights, with the usual warm-up of the decay."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in self.live.values()], 1 - decay)


def train(
    model: nn.Module,
    signal: Tensor,
    labels: Tensor,
    no_class: int,
    plan: Training,
    run_seed: int,
    state: State,
    label: str = "train",
    device: str = "cpu",
    teacher: nn.Module | None = None,
    phases: tuple[Phase, ...] = (),
) -> Outcome:
    """Train `model` in place for `plan.steps` steps and return averaged weights and losses.

    `signal` float32 [N, C, H, W] in [-1, 1] and `labels` int64 [N] are moved to the device once. Every step draws
    from (run_seed, step), so a run that was cut and goes on from `state` equals the uncut one, bit for bit on a CPU
    with the same thread count. With a `teacher` its output is the target; with `phases` each trains some layers alone.
    Raises Diverged within CHECK_EVERY steps of the first non-finite loss.
    """
    signal, labels = signal.to(device), labels.to(device)
    if plan.compile:
        for block in model.transformer_blocks:  # one graph serves all blocks
            block.compile()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=plan.lr,
        weight_decay=plan.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    average, losses, first = Average(model, plan.ema), [], 0
    if (found := state.latest()) is not None:
        first = found[0]
        losses = _restore(found[1], model, optimiser, average)
    model.train()
    every = CHECK_EVERY if signal.is_cuda else 1
    pending: list[Tensor] = []  # losses not yet read: reading one waits for the GPU
    with Bar(label, plan.steps, first) as bar:
        for step in range(first, plan.steps):
            batch = draw(signal, labels, plan.batch, no_class, plan.label_dropout, seed("batch", run_seed, step))
            select(model, phases, step / plan.steps)
            pending.append(_step(model, optimiser, batch, learning_rate(step, plan), plan, teacher))
            average.update(step)
            last, saves = step + 1 == plan.steps, (step + 1) % plan.save_every == 0
            if last or saves or len(pending) == every:
                losses += _finite(torch.stack(pending).tolist(), len(losses), label)
                bar.advance(len(pending), loss=sum(losses[-50:]) / len(losses[-50:]))
                pending = []
            if saves and not last:
                state.save(step + 1, _snapshot(model, optimiser, average, losses))
    model.requires_grad_(True)
    return Outcome(average.weights, losses)


def select(model: nn.Module, phases: tuple[Phase, ...], progress: float) -> None:
    """Let gradients reach the layers of the phase that `progress` (0..1) lies in, and learned activation ranges.

    Without phases everything is trained. Parameters without gradient are left alone by AdamW, decay included.
    """
    if not phases:
        return
    ends = list(accumulate(phase.share for phase in phases))
    phase = phases[min(bisect_right(ends, progress), len(phases) - 1)]
    model.requires_grad_(False)
    for name, (_, _, layer) in linears(model).items():
        if layer_type(name) in phase.layers:
            layer.requires_grad_(True)
    for quantiser in timed_quantisers(model).values():
        quantiser.requires_grad_(True)


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    lr: float,
    plan: Training,
    teacher: nn.Module | None,
) -> Tensor:
    """One update; the loss [] stays on the device."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=plan.precision == "bfloat16"):
        value = loss(model, batch if teacher is None else taught(teacher, batch))
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.grad_clip)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value.detach()


def _finite(losses: list[float], first: int, label: str) -> list[float]:
    """`losses` of the steps from `first` on. Raises Diverged when one is not finite."""
    for step, value in enumerate(losses, first):
        if not math.isfinite(value):
            raise Diverged(f"{label}: loss is {value} at step {step}; lower the learning rate and run again")
    return losses


def _snapshot(model: nn.Module, optimiser, average: Average, losses: list[float]) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average.weights,
        "losses": losses,
    }


def _restore(value: dict[str, Any], model: nn.Module, optimiser, average: Average) -> list[float]:
    model.load_state_dict(value["model"])
    optimiser.load_state_dict(value["optimiser"])
    with torch.no_grad():
        for name, weight in average.weights.items():
            weight.copy_(value["average"][name])
    return list(value["losses"])
