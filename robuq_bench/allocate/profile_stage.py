"""Measure how much each layer minds each activation width, after some QAT steps at the largest one."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robuq_bench import provenance
from robuq_bench.allocate.allocation import Profile, check_priced
from robuq_bench.allocate.profile import Sensitivity, sensitivity, shapes
from robuq_bench.allocate.stage import allocating
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.config.recipe import Variant
from robuq_bench.config.row import load_row
from robuq_bench.devices import describe, expect, held_seconds, release, use
from robuq_bench.errors import Diverged
from robuq_bench.files import write_json
from robuq_bench.models.dit import layer_type
from robuq_bench.progress import Bar
from robuq_bench.seeds import seed
from robuq_bench.train.examples import Examples, examples
from robuq_bench.train.objective import Batch, draw
from robuq_bench.train.stage import fit, prepare
from robuq_bench.train.state import State

EXAMPLE = """robuq-bench profile --preset quick --recipe robuq --variant W1.58A2 --start fp.safetensors \\
    --profile profile.json"""
BATCHES, BATCH = 4, 128


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--recipe", required=True, help="with overrides: robuq,allocation.profile_steps=0")
    parser.add_argument("--variant", required=True, help="such as W1.58A2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, required=True, help="full-precision checkpoint that QAT starts from")
    parser.add_argument("--profile", type=Path, required=True, help="JSON to write")
    parser.add_argument("--record-divergence", action="store_true", help="write a profile marked 'diverged' and exit 0")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    variant = allocating(load_row(preset, args.recipe, args.variant))
    check_priced(preset, variant)
    expect(preset.device, preset.qat.threads)
    record: dict[str, Any] = {
        "recipe": args.recipe,
        "variant": args.variant,
        "steps": variant.method.allocation.profile_steps,
    }
    try:
        record |= measured(preset, variant, args.seed, args.start)
    except Diverged as error:
        if not args.record_divergence:
            raise
        record |= {"status": "diverged", "reason": str(error)}
    release()
    facts = {"preset": args.preset, "seed": args.seed, "device_seconds": held_seconds()}
    profile = Profile(**record, provenance=provenance.collect(describe(preset.device), **facts))
    write_json(args.profile, profile.model_dump(mode="json"))


def measured(preset: Preset, variant: Variant, run_seed: int, start: Path) -> dict[str, Any]:
    """The measured fields of `Profile`. Raises Diverged when training or a profiled loss is not finite."""
    plan = variant.method.allocation
    train_set, _ = examples(preset)
    at_largest = variant.model_copy(update={"activation_bits": max(plan.candidates)})
    model, bits, _ = prepare(preset, at_largest, train_set, run_seed, start)
    device = use(preset.device, preset.qat.threads)
    model.to(device)
    label = f"profile {variant.recipe} {variant.name} seed {run_seed}"
    if plan.profile_steps:
        schedule = preset.qat.model_copy(update={"steps": plan.profile_steps, "save_every": plan.profile_steps})
        with tempfile.TemporaryDirectory() as unused:  # so short that it starts again when it is interrupted
            state = State(unused, label)
            outcome = fit(model, preset, variant, schedule, train_set, run_seed, start, state, label, device)
        model.load_state_dict(outcome.weights, strict=False)
    model.eval()
    linears = shapes(model, (preset.side // preset.model.patch) ** 2)
    with Bar(label, len(linears) * len(plan.candidates)) as bar:
        batches = [batch.to(device) for batch in probes(train_set, preset.qat.label_dropout)]
        if device == "cuda":  # which waits for launches
            batches = [joined(batches)]
        found = sensitivity(model, batches, plan.candidates, bar.advance, train_set.process)
    _check_finite(found, label)
    return {
        "layers": [linear.name for linear in linears],
        "types": [layer_type(linear.name) for linear in linears],
        "shapes": [(linear.n, linear.k) for linear in linears],
        "tokens": linears[0].tokens,
        "macs": [linear.macs for linear in linears],
        "fixed": {name: width for name, width in bits.items() if layer_type(name) == "adaln"},
        "candidates": plan.candidates,
        "loss": found.loss.tolist(),
        "mse": found.mse.tolist(),
        "base_loss": found.base_loss,
        "images": BATCHES * BATCH,
    }


def probes(train_set: Examples, label_dropout: float) -> Iterator[Batch]:
    """The batches every width is measured on: training images with fixed noise and times, whatever the run's seed."""
    signal, labels, no_class = train_set.signal, train_set.labels, train_set.shape.classes
    for index in range(BATCHES):
        draw_seed = seed("profile", index)
        yield draw(signal, labels, BATCH, no_class, label_dropout, draw_seed, train_set.process)


def joined(batches: list[Batch]) -> Batch:
    """All of them as one."""
    return Batch(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)))


def _check_finite(found: Sensitivity, label: str) -> None:
    if not (np.isfinite(found.loss).all() and np.isfinite(found.mse).all() and np.isfinite(found.base_loss)):
        raise Diverged(f"{label}: a profiled loss is not finite; lower the learning rate and run again")
