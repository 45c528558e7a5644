"""Write the images of a row as ADM's own evaluator.py reads them: one array arr_0, uint8 [N, H, W, 3]."""

import argparse
from pathlib import Path

from robuq_bench.errors import BenchError
from robuq_bench.metrics.adm import save_for_adm
from robuq_bench.sample import archive

EXAMPLE = "robuq-bench export-adm --samples samples.npz --out samples_for_adm.npz"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=Path, required=True, help=".npz of `robuq-bench sample`")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")


def run(args: argparse.Namespace) -> None:
    samples = archive.load(args.samples, on_disk=True)
    if samples.diverged:
        raise BenchError(f"{args.samples}: of a diverged run; there are no images to export")
    save_for_adm(args.out, samples.images)
