"""Pack a trained model: ternary codes at 5 trits a byte, FP16 for the rest, one hashed safetensors file."""

import argparse
from dataclasses import replace
from pathlib import Path

from robuq_bench.engine import packed
from robuq_bench.models import checkpoint

EXAMPLE = "robuq-bench export --model results/quick/robuq/W1.58A2/seed0/model.safetensors --packed robuq.safetensors"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="trained checkpoint")
    parser.add_argument("--packed", type=Path, required=True, help="packed file to write")


def run(args: argparse.Namespace) -> None:
    tensors, card = checkpoint.load(args.model, "trained")
    if card.diverged:  # the mark travels on, so that the table can show the row
        checkpoint.save(args.packed, {}, replace(card, kind="packed"))
        return
    model = packed.skeleton(card)
    checkpoint.load_into(model, tensors, args.model)
    packed.export(model, card, args.packed)
