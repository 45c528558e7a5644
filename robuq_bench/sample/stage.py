"""Draw the images of a row from its packed model: class-conditional, guided, one seed per image."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, use
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.files import sha256_file
from robuq_bench.models.checkpoint import read_card
from robuq_bench.progress import Bar
from robuq_bench.sample.archive import Samples, save
from robuq_bench.sample.generate import generate

EXAMPLE = "robuq-bench sample --preset quick --packed results/quick/robuq/W1.58A2/seed0/packed.safetensors --out s.npz"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--packed", type=Path, required=True, help="packed model")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write (ADM's layout)")


def simulated(path: Path, device: str) -> tuple[Callable, tuple[str, ...]]:
    """(the fake-quantised model in float32, no notes)."""
    return packed.load(path)[0].to(device), ()


def deployed(path: Path, device: str) -> tuple[Callable, tuple[str, ...]]:
    """(the engine's denoiser, what it computes otherwise than the simulated model)."""
    denoiser = deploy(path, device)
    return denoiser, denoiser.notes


DENOISERS = {"simulated": simulated, "deployed": deployed}


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    card = read_card(args.packed)
    device = use(preset.device, preset.threads)
    record = {
        "status": card.status,
        "reason": card.reason,
        "protocol": preset.sample.model_dump(),
        "packed": sha256_file(args.packed),
        "provenance": provenance.collect(describe(device)),
    }
    images = np.zeros((0, card.shape.size, card.shape.size, card.shape.channels), dtype=np.uint8)
    labels = np.zeros(0, dtype=np.int64)
    if not card.diverged:
        model, record["notes"] = DENOISERS[preset.sample.denoiser](args.packed, device)
        label = f"sample {card.variant.recipe} {card.variant.name} seed {card.seed}"
        with Bar(label, preset.sample.n) as bar:
            seeds = range(preset.sample.n)
            images, labels = generate(model, card.shape, seeds, preset.sample, device, bar.advance)
    save(args.out, Samples(images, labels, record))
