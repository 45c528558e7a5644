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
from robuq_bench.quant.warm import WarmBits
from robuq_bench.seeds import seed
from robuq_bench.train.captured import Captured
from robuq_bench.train.distributed import ALONE, World
from robuq_bench.train.objective import FLOW, Teacher, draw
from robuq_bench.train.processes import Process
from robuq_bench.train.state import State
from robuq_bench.train.update import Update, checkpointed, quick

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
    teacher: Teacher | None = None,
    phases: tuple[Phase, ...] = (),
    warm: WarmBits | None = None,
    process: Process = FLOW,
    world: World = ALONE,
) -> Outcome:
    """Train `model` in place for `plan.steps` steps and return averaged weights and losses.

    `signal` float32 [N, C, H, W] in [-1, 1], or latents on disk, and `labels` int64 [N] go to the device. Every step
    draws from (run_seed, step), so a run that was cut and goes on from `state` equals the uncut one, bit for bit on a
    CPU with the same thread count. On a GPU the step is a CUDA graph, replayed. With a `teacher` its output is the
    target, or part of it; with `phases` each trains some layers alone; `warm` widens activations at first. With `world`
    each process takes its part of the batch; the losses are those of one process, to rounding.
    Raises Diverged within CHECK_EVERY steps of the first non-finite loss.
    """
    signal, labels = signal.to(device), labels.to(device)
    part = world.part(plan.batch)
    world.share(list(model.parameters()))
    update = Update(model, plan, teacher, process, world)
    run = Captured(update) if signal.is_cuda else update
    every = CHECK_EVERY if signal.is_cuda else 1
    pending: list[Tensor] = []  # losses not yet read: reading one waits for the GPU
    with quick(model, plan), checkpointed(model, plan.checkpointing):
        first, losses = _restore(state, update)
        model.train()
        with Bar(label, plan.steps, first) as bar:
            for step in range(first, plan.steps):
                drawn = seed("batch", run_seed, step)
                batch = draw(signal, labels, plan.batch, no_class, plan.label_dropout, drawn, process, part)
                select(model, phases, step / plan.steps)
                if warm and warm.at(step / plan.steps) and signal.is_cuda:
                    run = Captured(update)  # a recording holds the bits it was made with
                run.prepare(step, learning_rate(step, plan))
                pending.append(run(batch))
                last, saves = step + 1 == plan.steps, (step + 1) % plan.save_every == 0
                if last or saves or len(pending) == every:
                    losses += _finite(torch.stack(pending).tolist(), len(losses), label)
                    bar.advance(len(pending), loss=sum(losses[-50:]) / len(losses[-50:]))
                    pending = []
                if saves and not last and world.leads:
                    state.save(step + 1, _snapshot(update, losses))
    model.requires_grad_(True)
    return Outcome(update.average.weights, losses)


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


def _finite(losses: list[float], first: int, label: str) -> list[float]:
    """`losses` of the steps from `first` on. Raises Diverged when one is not finite."""
    for step, value in enumerate(losses, first):
        if not math.isfinite(value):
            raise Diverged(f"{label}: loss is {value} at step {step}; lower the learning rate and run again")
    return losses


def _snapshot(update: Update, losses: list[float]) -> dict[str, Any]:
    return {
        "model": update.model.state_dict(),
        "optimiser": update.optimiser.state_dict(),
        "average": update.average.weights,
        "losses": losses,
    }


def _restore(state: State, update: Update) -> tuple[int, list[float]]:
    """Put `update` where the newest state is: (steps done, their losses)."""
    found = state.latest()
    if found is None:
        return 0, []
    step, value = found
    update.model.load_state_dict(value["model"])
    update.optimiser.load_state_dict(value["optimiser"])
    with torch.no_grad():
        for name, weight in update.average.weights.items():
            weight.copy_(value["average"][name])
    return step, list(value["losses"])
