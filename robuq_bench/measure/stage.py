"""Size of a packed model on disk and latency of one forward pass, labelled as what they are."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, use
from robuq_bench.engine import packed
from robuq_bench.files import sha256_file, write_json
from robuq_bench.measure.latency import time_forward
from robuq_bench.models.checkpoint import read_card

EXAMPLE = """robuq-bench measure --preset quick --packed results/quick/robuq/W1.58A2/seed0/packed.safetensors \\
    --out measure.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--packed", type=Path, required=True, help="packed model")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    device = use(preset.device, preset.threads)
    card = read_card(args.packed)
    latency = None
    if not card.diverged:
        model, _ = packed.load(args.packed)
        plan = preset.latency
        timing = time_forward(model.to(device), card.shape, plan.batch, plan.repeats, device)
        # Fake quantisation in float32: it says what the simulation costs, nothing about low-bit kernels.
        label = "simulated" if card.variant.method.weight else "float32"
        latency = {**timing.record(), "label": label, "device": describe(device)}
    record = {
        "status": card.status,
        "reason": card.reason,
        "size": {"bytes": args.packed.stat().st_size, "label": "packed"},
        "latency": latency,
        "packed": sha256_file(args.packed),
        "provenance": provenance.collect(describe(device)),
    }
    write_json(args.out, record)
