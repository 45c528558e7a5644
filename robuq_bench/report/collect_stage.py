"""Collect what a study leaves behind into one small folder, from which every table, picture and page can be made again.

Weights, images and features stay behind. Prints the GPU minutes that the study took.
"""

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robuq_bench import provenance
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, write_json
from robuq_bench.report.inputs import FLOOR, MEASURE, METRICS, PROFILE, TRAIN

EXAMPLE = "robuq-bench collect --results results/gpu --out results/gpu/collected"
COST = "cost.json"
KEPT = ("*.json", "*.csv", "*.md", "*.tex", FLOOR, "ablations/*.json", "inspect/**/*.json")
RECORDS = {"train": TRAIN, "evaluate": METRICS, "measure": MEASURE, "profile": PROFILE}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, required=True, help="folder of a preset's results")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    found = sorted(path for pattern in KEPT for path in args.results.glob(pattern))
    if not found:
        raise BenchError(f"{args.results}: no tables or ablations here; run the study first")
    for path in found:
        place = args.out / path.relative_to(args.results)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    cost = spent(args.results)
    write_json(args.out / COST, {**cost, "provenance": provenance.collect()})
    print(summary(cost))


def spent(results: Path) -> dict[str, Any]:
    """Seconds for which jobs held a GPU, by stage, and which GPUs. Jobs that ran on a CPU count nothing."""
    seconds, jobs, gpus = Counter(), Counter(), set()
    for stage, record in held(results):
        seconds[stage] += record["device_seconds"]
        jobs[stage] += 1
        gpus.add(record["device"])
    return {
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "jobs": dict(jobs),
        "gpus": sorted(gpus),
        "gpu_minutes": round(sum(seconds.values()) / 60, 1),
    }


def held(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, provenance) of every job below `results` that held a GPU."""
    for stage, record in _jobs(results):
        if record.get("device_seconds"):
            yield stage, record


def _jobs(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage, name in RECORDS.items():
        for path in results.glob(f"*/W*/seed*/{name}"):
            record = read_json(path)
            yield stage, record["provenance"]
            if stage == "evaluate":
                yield "sample", record["sampled"]
    for path in results.glob(FLOOR):
        yield "reference", read_json(path)["provenance"]


def summary(cost: dict[str, Any]) -> str:
    """The cost in one line: "GPU minutes: 21.4 (train 12.0, sample 6.1); NVIDIA H100"."""
    stages = ", ".join(f"{stage} {value / 60:.1f}" for stage, value in cost["seconds"].items())
    return f"GPU minutes: {cost['gpu_minutes']:.1f}" + (f" ({stages}); {', '.join(cost['gpus'])}" if stages else "")
