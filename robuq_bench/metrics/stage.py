"""Score the images of a row against the real ones: Frechet distances, IS, KID, precision and recall."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, expect, held_seconds, use
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_file, write_json
from robuq_bench.metrics.evaluate import evaluate_all
from robuq_bench.metrics.extractors import load_all
from robuq_bench.metrics.features import Extractor, Features
from robuq_bench.metrics.reference import load_reference, reference_file
from robuq_bench.metrics.store import Store
from robuq_bench.progress import Bar
from robuq_bench.sample import archive
from robuq_bench.train.distributed import World, together

EXAMPLE = "robuq-bench evaluate --preset quick --samples samples.npz --reference reference/ --out metrics.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help=".npz of `robuq-bench sample`")
    parser.add_argument("--reference", type=Path, required=True, help="folder of `robuq-bench reference`")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "--features", type=Path, help="folder that keeps features: for sets beyond memory, shared among processes"
    )


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    samples = archive.load(args.samples, on_disk=args.features is not None)
    if samples.diverged:
        write(args, samples, [], preset.device)
        return
    check_count(args.samples, len(samples.images), preset.sample.n)
    references = [load_reference(reference_file(args.reference, name)) for name in preset.evaluate.names]
    device = use(preset.device, preset.threads, urgent=True)
    with together(device) as world:
        found = extract(args, samples.images, load_all(preset.evaluate, device), world)
        if world.leads:
            scores = evaluate_all(list(zip(found, references, strict=True)), device)
            write(args, samples, scores, preset.device)


def check_count(path: Path, count: int, wanted: int) -> None:
    """Raises BenchError for another number of images than the preset's: all scores depend on it."""
    if count != wanted:
        raise BenchError(
            f"{path}: holds {count} images, and the preset scores {wanted} (sample.n); scores of different N do not "
            "compare: sample again, or set sample.n"
        )


def extract(args: argparse.Namespace, images: np.ndarray, extractors: list[Extractor], world: World) -> list[Features]:
    """Features by each extractor; with --features they stay on disk, and processes share the work."""
    with Bar(f"score {args.samples.parent}", len(images) * len(extractors)) as bar:
        if args.features is None:
            return [extractor.features(images, bar.advance) for extractor in extractors]
        digest = sha256_file(args.samples)
        stores = [Store(args.features, extractor, images, digest) for extractor in extractors]
        for store in stores:
            store.extract(world, bar.advance)
        world.wait()
        return [store.features() for store in stores]


def write(args: argparse.Namespace, samples: archive.Samples, scores: list[dict[str, Any]], device: str) -> None:
    record = {
        **{key: samples.card[key] for key in ("status", "reason", "protocol", "packed")},
        "scores": scores[0] if scores else None,
        "also": scores[1:],
        "sampled": samples.card["provenance"],
        "provenance": provenance.collect(describe(device), device_seconds=held_seconds()),
    }
    write_json(args.out, record)
