"""Features and moments of the training images, and what held-out real images score against them (the floor)."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, use
from robuq_bench.files import write_json
from robuq_bench.metrics.evaluate import floor
from robuq_bench.metrics.extractors import load_extractor
from robuq_bench.metrics.reference import build_reference, save_reference
from robuq_bench.progress import Bar
from robuq_bench.train.images import images

EXAMPLE = "robuq-bench reference --preset quick --reference reference.safetensors --floor floor.json"
CHUNK = 512  # images whose features are held at a time


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--reference", type=Path, required=True, help="moments of the real images, to write")
    parser.add_argument("--floor", type=Path, required=True, help="real-vs-real scores, JSON, to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    device = use(preset.device, preset.threads)
    extractor = load_extractor(preset.evaluate.extractor, preset.evaluate.weights, device)
    train_set, held_out = images(preset)
    count = min(preset.sample.n, len(held_out))
    with Bar("reference features", len(train_set) + count) as bar:

        def features(pictures):
            found = extractor.features(pictures)
            bar.advance(len(pictures))
            return found

        chunks = (features(train_set.images[start : start + CHUNK]) for start in range(0, len(train_set), CHUNK))
        reference = build_reference(chunks, data=train_set.digest)
        scores = floor(features(held_out.images[:count]), reference)
    save_reference(args.reference, reference)
    record = {"scores": scores, "data": train_set.digest, "provenance": provenance.collect(describe(device))}
    write_json(args.floor, record)
