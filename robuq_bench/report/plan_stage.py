"""What would a preset cost? GPU-hours, time on the clock, memory and disk, per row and in all, before any is spent."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from robuq_bench import provenance
from robuq_bench.config.base import build
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.config.row import load_row
from robuq_bench.errors import BenchError
from robuq_bench.files import existing, read_json, write_json
from robuq_bench.measure.probe_records import Probe
from robuq_bench.report.collect_stage import COST
from robuq_bench.report.plan import IMAGENET, Job, Plan, StepRatio, make
from robuq_bench.report.records import DASH

EXAMPLE = "robuq-bench plan gpu --gpus 8"
REFERENCE = Path("results/reference")
H100 = REFERENCE / "probe/h100.json"
H100_STEPS = Path("results/reference/step_cost/XL-2-fused.json")
STEPS_OF = "robuq_uniform/W1.58A2"  # the row that the probe times as well
STAGES = ("encode", "allocate", "train", "sample", "score")
GIB, GB = 2**30, 1e9
WIDTH = 120  # columns where there is no terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser, positional=True)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the work")
    parser.add_argument("--throughput", type=Path, default=H100, help=f"JSON of `robuq-bench probe` (default: {H100})")
    parser.add_argument(
        "--step-cost",
        type=Path,
        help=f"JSON of `robuq-bench step-cost`, for a throughput without a quantised step (of {H100}: {H100_STEPS})",
    )
    parser.add_argument("--images", type=int, default=IMAGENET, help="images to encode (default: ImageNet-1K's)")
    parser.add_argument("--json", type=Path, help="JSON to write as well")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    for option in ("gpus", "images"):
        if getattr(args, option) < 1:
            raise BenchError(f"--{option} {getattr(args, option)}: give a number above 0")
    if preset.device != "cuda":
        raise BenchError(
            f"preset {args.preset} runs on a CPU and a plan counts GPU-hours; name a GPU preset, or see what it would "
            "cost on one with --set device=cuda"
        )
    probe = read_probe(args.throughput)
    variants = [load_row(preset, *row.rsplit("/", 1)) for row in preset.rows]
    steps = args.step_cost or (H100_STEPS if args.throughput == H100 else None)
    plan = make(preset, variants, probe, args.gpus, args.images, read_ratio(steps) if steps else None)
    if args.json:
        write_json(args.json, record(args.preset, plan, probe))
    show(args.preset, preset, plan, probe)


def read_probe(path: Path) -> Probe:
    """Raises BenchError when the file is missing, damaged or without provenance."""
    if not path.is_file():
        raise BenchError(f"{path}: no such file; make one with `robuq-bench probe --out FILE`, name it by --throughput")
    raw = read_json(path)
    provenance.check(raw if isinstance(raw, dict) else {}, str(path))
    return build(Probe, raw, str(path))


def read_ratio(path: Path) -> StepRatio:
    """Raises BenchError when the file is missing, without provenance, or does not hold STEPS_OF."""
    raw = read_json(existing(path, "step cost"))
    found = provenance.check(raw if isinstance(raw, dict) else {}, str(path))
    row = next((row for row in raw.get("rows", []) if row.get("row") == STEPS_OF), None)
    if row is None:
        raise BenchError(f"{path}: no step of {STEPS_OF}; make it with `robuq-bench step-cost --variant {STEPS_OF}`")
    source = f"size {raw['size']}, {raw['blocks']} blocks, batch {raw['batch']}, {found['device']}; {path}"
    return StepRatio(row["ratio"], source)


def record(name: str, plan: Plan, probe: Probe) -> dict[str, Any]:
    """The plan as JSON, theory all of it, with the provenance of the throughput it rests on."""
    jobs = [asdict(job) | {"gpu_hours": job.total} for job in (*plan.first, *plan.rows)]
    totals = {"gpu_hours": plan.hours, "disk_bytes": plan.disk, "memory_bytes": plan.memory}
    return {
        "preset": name,
        "label": "theory",
        "gpus": plan.gpus,
        "jobs": jobs,
        **totals,
        "hours_one_gpu_a_job": plan.apart,
        "hours_all_gpus_a_job": plan.together,
        "assumptions": plan.assumptions,
        "left_out": plan.left_out,
        "throughput": probe.provenance,
        "provenance": provenance.collect(),
    }


def show(name: str, preset: Preset, plan: Plan, probe: Probe) -> None:
    """Print the plan."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(
        title=f"{name}: {preset.title}, on {plan.gpus} × {probe.hardware.name}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    table.add_column("job", min_width=24)
    for head in ("seeds", *STAGES, "GPU-hours", "GiB a GPU", "disk, GB"):
        table.add_column(head, justify="right")
    for job in (*plan.first, *plan.rows):
        table.add_row(*cells(job))
    table.add_section()
    blank = [""] * (1 + len(STAGES))
    table.add_row("all", *blank, number(plan.hours), number(plan.memory / GIB), number(plan.disk / GB))
    console.print(table)
    console.print(*summary(plan, probe), *measured(name), sep="\n", soft_wrap=True, highlight=False)


def measured(name: str) -> Iterable[str]:
    """What a committed study of the preset took, as `robuq-bench collect` has counted it; nothing without one."""
    path = REFERENCE / name / COST
    if not path.is_file():
        return
    found = read_json(path)
    provenance.check(found, str(path))
    each = ", ".join(f"{stage} {found['seconds'][stage] / count:.1f}" for stage, count in found["jobs"].items())
    yield f"Measured ({path}): GPU-seconds a job on {', '.join(found['gpus'])}: {each}; believe these before the table."


def cells(job: Job) -> list[str]:
    """A line of the table; stages in GPU-hours of one seed, the rest of all seeds."""
    stages = [number(job.hours.get(stage)) for stage in STAGES]
    memory, disk = number(job.memory / GIB or None), number(job.disk / GB)
    return [job.name, str(job.seeds), *stages, number(job.total), memory, disk]


def number(value: float | None) -> str:
    """Three digits, as many as a plan is worth; nothing where there is nothing."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def summary(plan: Plan, probe: Probe) -> Iterable[str]:
    """Time on the clock, whether it fits, what is left out, what is assumed."""
    yield f"On the clock: {number(plan.apart)} hours with one GPU a job; {number(plan.together)} with all on each job."
    if plan.memory > probe.hardware.memory_bytes:
        yield (
            f"It does not fit: {plan.memory / GIB:.0f} GiB are needed and this GPU has "
            f"{probe.hardware.memory_bytes / GIB:.0f}; set micro_batch or checkpointing of the training block, or lane"
        )
    yield from (f"Left out: {item}" for item in plan.left_out)
    yield "Assumed:"
    yield from (f"  - {item}" for item in plan.assumptions)
