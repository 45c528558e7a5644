"""Choose the tiles of a packed file's products by measuring them on this GPU; `deploy` uses what was found.

The times are those of choosing, kept apart from any latency that is reported. They stay in the cache folder until the
GPU, its driver, a library or a kernel changes.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from robuq_bench import provenance
from robuq_bench.engine.kernels import attention, choice, jit
from robuq_bench.engine.kernels.choice import Choice, Shape
from robuq_bench.engine.kernels.packing import UNIT
from robuq_bench.engine.kernels.tune import tune
from robuq_bench.engine.layout import layer_shapes
from robuq_bench.engine.support import unsupported
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.models.checkpoint import Card, read_card
from robuq_bench.models.dit import layer_type

EXAMPLE = "robuq-bench engine-tune robuq.safetensors --batch 2 64"
LOG = logging.getLogger("robuq_bench")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("packed", type=Path, help="packed file whose linears are to be tuned")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 64], help="images of one pass, guidance included")
    parser.add_argument("--out", type=Path, help="JSON to write: the tiles tried, their times, what choosing took")


def run(args: argparse.Namespace) -> None:
    jit.architecture()
    if min(args.batch) < 1:
        raise BenchError(f"--batch {min(args.batch)}: a pass has at least one image")
    device, card = torch.device("cuda", torch.cuda.current_device()), read_card(args.packed)
    if reason := unsupported(card):
        raise BenchError(f"{args.packed}: the engine cannot run {card.variant.name}: this model {reason}")
    chosen = tune(shapes(card, args.batch), device, int8=False)
    for line in map(describe, chosen):
        LOG.info(line)
        print(line)
    print(f"{sum(each.seconds for each in chosen):.1f} s of choosing, kept in {choice.path(device)}")
    for batch in sorted(set(args.batch)):
        print(f"attention of {batch} images: {attention.explain(batch, attention_shape(card), device)}")
    if args.out:
        facts = {name: value for name, value in choice.key(device).items() if name != "device"}
        record = provenance.collect(torch.cuda.get_device_name(device), **facts)
        write_json(args.out, {"choices": [choice.to_row(each) for each in chosen], "provenance": record})


def shapes(card: Card, batches: Sequence[int]) -> list[Shape]:
    """The different products of the blocks' linears (adaLN has a kernel of its own) for passes of so many images."""
    tokens = (card.shape.size // card.model.patch) ** 2
    linears = {
        (outputs, -(-inputs // UNIT) * UNIT, card.bits[name])
        for name, (outputs, inputs) in layer_shapes(card).items()
        if layer_type(name) != "adaln"
    }
    rows = sorted({choice.bucket(batch * tokens) for batch in batches})
    return [Shape(m, *linear) for m in rows for linear in sorted(linears)]


def attention_shape(card: Card) -> attention.Shape:
    model = card.model
    return attention.Shape((card.shape.size // model.patch) ** 2, model.heads, model.width // model.heads)


def describe(chosen: Choice) -> str:
    """One line: the shape, the tile that won, and what the runner-up takes."""
    shape, us = chosen.shape, chosen.us
    others = sorted((time, name) for name, time in us.items() if name != str(chosen.tile))
    second = f"; next {others[0][1]} {others[0][0]:.1f}" if others else ""
    return (
        f"M {shape.m} N {shape.n} K {shape.k} A{shape.bits}: {chosen.tile} {us[str(chosen.tile)]:.1f} us{second}"
        f" ({len(us)} tried, {chosen.seconds:.1f} s)"
    )
