"""Draw the images of a row from its packed model: class-conditional, guided, one seed per image."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, Sampling, load_preset, preset_arguments
from robuq_bench.devices import describe, expect, held_seconds, release, use
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_file
from robuq_bench.models.checkpoint import Card, read_card
from robuq_bench.progress import Bar
from robuq_bench.sample.archive import Samples, save
from robuq_bench.sample.decode import decoder
from robuq_bench.sample.generate import Decode, draw_lane, generate, image_class
from robuq_bench.sample.kept import Kept
from robuq_bench.sample.simulated import denoiser
from robuq_bench.train.distributed import together

EXAMPLE = "robuq-bench sample --preset quick --packed results/quick/robuq/W1.58A2/seed0/packed.safetensors --out s.npz"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--packed", type=Path, required=True, help="packed model")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write (ADM's layout)")
    parser.add_argument(
        "--state", type=Path, help="folder for the images drawn so far: a cut run goes on, processes share the work"
    )


def simulated(path: Path, plan: Sampling) -> Callable[[str], tuple[Callable, tuple[str, ...]]]:
    """The fake-quantised model, to be put on a device: (denoiser, no notes)."""
    model, _ = packed.load(path)
    return lambda device: (denoiser(model, plan.precision, device), ())


def deployed(path: Path, _: Sampling) -> Callable[[str], tuple[Callable, tuple[str, ...]]]:
    """The engine's denoiser, to be put on a device: (denoiser, what it computes otherwise than the simulated model)."""

    def onto(device: str) -> tuple[Callable, tuple[str, ...]]:
        model = deploy(path, device)
        return model, model.notes

    return onto


DENOISERS = {"simulated": simulated, "deployed": deployed}


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    card = read_card(args.packed)
    record = {
        "status": card.status,
        "reason": card.reason,
        "protocol": preset.sample.model_dump(),
        "packed": sha256_file(args.packed),
    }
    shape = image_shape(preset, card)
    images, labels = np.zeros(shape, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    if card.diverged:
        write(args, images, labels, record, preset.device)
        return
    load = DENOISERS[preset.sample.denoiser](args.packed, preset.sample)
    device = use(preset.device, preset.threads, urgent=True)
    label = f"sample {card.variant.recipe} {card.variant.name} seed {card.seed}"
    with fitting(label, preset.sample), together(device) as world:
        model, record["notes"] = load(device)
        decode = decoder(preset, device)
        kept = Kept(args.state, json.dumps(record), shape, preset.sample.lane, world) if args.state else None
        images, labels = drawn(model, decode, card, preset.sample, device, label, kept)
        release()
        if world.leads:
            write(args, images, labels, record, preset.device)
        if kept:
            kept.clear()


def image_shape(preset: Preset, card: Card) -> tuple[int, int, int, int]:
    """[N, H, W, C] of the row's images: none of a diverged one; those decoded from latents are RGB."""
    side, channels = (preset.data.size, 3) if preset.latents else (card.shape.size, card.shape.channels)
    return (0 if card.diverged else preset.sample.n, side, side, channels)


def write(
    args: argparse.Namespace, images: np.ndarray, labels: np.ndarray, record: dict[str, Any], device: str
) -> None:
    record["provenance"] = provenance.collect(describe(device), device_seconds=held_seconds())
    save(args.out, Samples(images, labels, record))


def drawn(
    model: Callable, decode: Decode, card: Card, plan: Sampling, device: str, label: str, kept: Kept | None
) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of the row; with `kept`, only this process's share is drawn here."""
    with Bar(label, plan.n) as bar:
        if kept is None:
            return generate(model, card.shape, range(plan.n), plan, device, bar.advance, decode)
        kept.draw(lambda seeds: draw_lane(model, card.shape, seeds, plan, device, decode), bar.advance)
    labels = np.array([image_class(s, card.shape.classes) for s in range(plan.n)], dtype=np.int64)
    return kept.images(), labels


@contextmanager
def fitting(label: str, plan: Sampling) -> Iterator[None]:
    """Raises BenchError when the GPU's memory does not hold a lane."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BenchError(
            f"{label}: the GPU's memory does not hold a lane of {plan.lane} images; try --set "
            f"sample.lane={max(plan.lane // 2, 1)} (the same for all rows)"
        ) from error
