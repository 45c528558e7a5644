"""Features and moments of the real images, and what held-out real images score against them (the floor)."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.devices import describe, expect, held_seconds, use
from robuq_bench.files import write_json
from robuq_bench.metrics.adm import AdmFile
from robuq_bench.metrics.evaluate import evaluate_all
from robuq_bench.metrics.extractors import load_all
from robuq_bench.metrics.features import Extractor, Features
from robuq_bench.metrics.reference import Reduced, build_reference, reference_file, save_reference
from robuq_bench.progress import Bar
from robuq_bench.train.images import images

EXAMPLE = "robuq-bench reference --preset quick --reference reference/ --floor floor.json"
CHUNK = 4096  # images whose features are held at a time


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument(
        "--reference", type=Path, required=True, help="folder to write: moments of the real images, by extractor"
    )
    parser.add_argument("--floor", type=Path, required=True, help="real-vs-real scores, JSON, to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    reals = AdmFile(preset.evaluate.reference) if preset.evaluate.reference else OwnImages(preset)
    device = use(preset.device, preset.threads, urgent=True)
    made = []
    for extractor in load_all(preset.evaluate, device):
        with Bar(f"reference features, {extractor.name}", len(reals)) as bar:
            reduced = reals.reduced(told(extractor, bar))
        save_reference(reference_file(args.reference, extractor.name), reduced.reference)
        made.append((reduced.held_out, reduced.against))
    scores = evaluate_all(made, device)
    record = {
        "scores": scores[0],
        "also": scores[1:],
        "data": reals.digest,
        "provenance": provenance.collect(describe(device), device_seconds=held_seconds()),
    }
    write_json(args.floor, record)


class OwnImages:
    """The preset's own images: the training images are the reference, held-out ones give the floor."""

    def __init__(self, preset: Preset):
        self.train, held_out = images(preset)
        self.held_out = held_out.subset(range(min(preset.sample.n, len(held_out))))
        self.digest = self.train.digest

    def __len__(self) -> int:
        return len(self.train) + len(self.held_out)

    def reduced(self, features: Callable[[np.ndarray], Features]) -> Reduced:
        """The training images as a reference, and the held-out ones to score against it."""
        chunks = (features(self.train.images[start : start + CHUNK]) for start in range(0, len(self.train), CHUNK))
        reference = build_reference(chunks, data=self.digest)
        return Reduced(reference, features(self.held_out.images), reference)


def told(extractor: Extractor, bar: Bar) -> Callable[[np.ndarray], Features]:
    """The extractor's features, with progress."""

    def features(pictures: np.ndarray) -> Features:
        found = extractor.features(pictures)
        bar.advance(len(pictures))
        return found

    return features
