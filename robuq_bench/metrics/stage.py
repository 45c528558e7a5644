"""Score the images of a row against the real ones: Frechet distances, IS, KID, precision and recall."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, use
from robuq_bench.files import write_json
from robuq_bench.metrics.evaluate import evaluate
from robuq_bench.metrics.extractors import load_extractor
from robuq_bench.metrics.reference import load_reference
from robuq_bench.progress import Bar
from robuq_bench.sample import archive

EXAMPLE = """robuq-bench evaluate --preset quick --samples samples.npz --reference reference.safetensors \\
    --out metrics.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help=".npz of `robuq-bench sample`")
    parser.add_argument("--reference", type=Path, required=True, help="file of `robuq-bench reference`")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    device = use(preset.device, preset.threads)
    samples = archive.load(args.samples)
    scores = None
    if not samples.diverged:
        extractor = load_extractor(preset.evaluate.extractor, preset.evaluate.weights, device)
        reference = load_reference(args.reference, extractor.source)
        with Bar(f"score {args.samples.parent}", len(samples.images)) as bar:
            features = extractor.features(samples.images, lambda done, _: bar.advance(done - bar.done))
        scores = evaluate(features, reference)
    record = {
        **{key: samples.card[key] for key in ("status", "reason", "protocol", "packed")},
        "scores": scores,
        "sampled": samples.card["provenance"],
        "provenance": provenance.collect(describe(device)),
    }
    write_json(args.out, record)
