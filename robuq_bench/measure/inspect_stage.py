"""Look inside: are rotated activations normal, as RobuQ claims, and what do a trained row's parts carry?

Part one takes the full-precision model: the inputs of every block linear on held-out images at many times, as they
come and rotated. Part two takes a trained row apart, from its packed file.
"""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.devices import describe, expect, use
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_file, write_json
from robuq_bench.measure.inspect_activations import activations, passes
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.measure.inspect_row import row
from robuq_bench.measure.inspect_verdict import verdict
from robuq_bench.progress import Bar
from robuq_bench.train.examples import Examples, examples
from robuq_bench.train.stage import full_precision

EXAMPLE = """robuq-bench inspect --preset quick --model results/quick/full_precision/W32A32/seed0/model.safetensors \\
    --trained results/quick/robuq_uniform/W1.58A2/seed0/model.safetensors \\
    --packed results/quick/robuq_uniform/W1.58A2/seed0/packed.safetensors --out inspect.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="full-precision checkpoint")
    parser.add_argument("--trained", type=Path, required=True, help="trained checkpoint of a quantised row")
    parser.add_argument("--packed", type=Path, required=True, help="packed file of the same row")
    parser.add_argument(
        "--images", type=int, default=128, help="held-out images, each seen at every time (%(default)s)"
    )
    parser.add_argument("--times", type=int, default=10, help="times, spread evenly over 0...1 (%(default)s)")
    parser.add_argument("--signs", type=int, default=0, help="seed of the rotation's random signs (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    held_out = _held_out(preset, args.images)
    if args.times < 1:
        raise BenchError(f"--times {args.times}: give at least one")
    times = tuple((k + 0.5) / args.times for k in range(args.times))
    model = full_precision(preset, held_out.shape, args.model).eval()
    device = use(preset.device, preset.threads)
    model.to(device)
    with Bar("inspect", 2 * passes(len(held_out), len(times))) as bar:
        seen = activations(model, held_out, times, args.signs, device, bar.advance)
        taken_apart = row((args.packed, args.trained), model, held_out, times, device, bar.advance)
    facts = {"preset": args.preset, "model": sha256_file(args.model), "packed": taken_apart.packed}
    record = Inspection(
        preset=Path(args.preset).stem,
        title=preset.title,
        label="simulated",
        verdict=verdict(seen, taken_apart),
        activations=seen,
        row=taken_apart,
        provenance=provenance.collect(describe(device), n=len(held_out), **facts),
    )
    write_json(args.out, record.model_dump(mode="json"))


def _held_out(preset: Preset, count: int) -> Examples:
    """The first `count` held-out images. Raises BenchError when there are not so many."""
    _, held_out = examples(preset)
    if not 1 <= count <= len(held_out):
        raise BenchError(f"--images {count}: choose 1 to {len(held_out)}, the images that the preset holds out")
    return held_out.first(count)
