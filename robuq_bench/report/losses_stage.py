"""Held-out losses of every run that has been trained: what a study shows before, or without, scores of its images.

The loss is the mean squared velocity error of the averaged, fake-quantised weights on held-out images. It orders
methods at equal bits and budget; it says nothing of how good images are.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.config.recipe import load_variant
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json, write_text
from robuq_bench.metrics.intervals import t_interval
from robuq_bench.report.comparison import holm, p_text, paired
from robuq_bench.report.inputs import METRICS, TRAIN
from robuq_bench.report.records import DASH, Train, read_record

EXAMPLE = "robuq-bench losses --preset gpu --results results/gpu --out results/gpu/losses"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument(
        "--out", type=Path, required=True, help="path of the JSON and Markdown to write, without suffix"
    )


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    rows = sorted(trained(args.results), key=lambda row: (row["variant"], row["mean"] or float("inf")))
    if not rows:
        raise BenchError(f"{args.results}: nothing has been trained here")
    found = {"preset": Path(args.preset).stem, "title": preset.title, "label": "simulated", "rows": rows}
    record = {**found, "gaps": gaps(rows), "provenance": provenance.collect()}
    write_json(args.out.with_name(args.out.name + ".json"), record)
    write_text(args.out.with_name(args.out.name + ".md"), markdown(preset, record))


def trained(results: Path) -> Iterable[dict[str, Any]]:
    """A row of "recipe/variant": loss of each seed, its mean with the half-width of the 95 % interval, provenance."""
    for folder in sorted(results.glob("*/W*")):
        recipe, variant = folder.parent.name, folder.name
        runs = {place.parent.name: read_record(place, Train) for place in sorted(folder.glob(f"seed*/{TRAIN}"))}
        if not runs:
            continue
        losses = {int(name.removeprefix("seed")): run.held_out_loss for name, run in runs.items()}
        whole = None not in losses.values()  # a diverged run has none
        interval = t_interval(list(losses.values())) if whole else None
        yield {
            "method": load_variant(recipe, variant).method.title,
            "recipe": recipe,
            "variant": variant,
            "losses": losses,
            "mean": interval and interval.mean,
            "half_width": interval and interval.half_width,
            "reasons": sorted({run.reason for run in runs.values()} - {""}),
            "scored": sum((folder / name / METRICS).exists() for name in runs),
            "provenance": {name: run.provenance for name, run in runs.items()},
        }


def gaps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every two rows of one variant over the seeds that both have: paired t-tests, one family (Holm)."""
    pairs = [
        (one, other, sorted(one["losses"].keys() & other["losses"].keys()))
        for one, other in combinations(rows, 2)
        if one["variant"] == other["variant"] and None not in (one["mean"], other["mean"])
    ]
    found = [(one, other, seeds) for one, other, seeds in pairs if seeds]
    tests = [paired(*([row["losses"][seed] for seed in seeds] for row in (other, one))) for one, other, seeds in found]
    return [
        {
            "variant": one["variant"],
            "better": one["recipe"],
            "other": other["recipe"],
            "difference": test.mean,
            "half_width": test.half_width,
            "p": p,
            "seeds": seeds,
        }
        for (one, other, seeds), test, p in zip(found, tests, holm([test.p for test in tests]), strict=True)
    ]


def markdown(preset: Preset, record: dict[str, Any]) -> str:
    """The record as a page of Markdown."""
    scored = sum(row["scored"] for row in record["rows"])
    runs = sum(len(row["losses"]) for row in record["rows"])
    lines = [
        f"# Held-out losses: {record['title']}",
        "",
        f"{runs} runs are trained, and the images of {scored} of them are scored. Loss: mean squared velocity error of "
        f"the averaged weights (simulated, float32) on {preset.data.held_out} held-out images; lower is better. It "
        "orders methods at equal bits and training; it does not say how good the images are. ±: half-width of the "
        "95 % interval over training seeds.",
        "",
        "| method | recipe | W/A | held-out loss | by seed |",
        "|---|---|---|---:|---|",
        *map(_line, record["rows"]),
        "",
        "| W/A | lower loss | than | difference | p |",
        "|---|---|---|---:|---|",
        *map(_gap, record["gaps"]),
        "",
        "p: two-sided t-test paired by seed, after Holm's correction for all differences of this page. All quantised "
        "rows start from one full-precision checkpoint, whose own spread is not in these figures.",
        "",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    by_seed = ", ".join(f"{seed}: {DASH if loss is None else f'{loss:.5f}'}" for seed, loss in row["losses"].items())
    value = _number(row["mean"], row["half_width"]) if row["mean"] else f"diverged ({'; '.join(row['reasons'])})"
    return f"| {row['method']} | {row['recipe']} | {row['variant']} | {value} | {by_seed} |"


def _gap(gap: dict[str, Any]) -> str:
    difference = _number(gap["difference"], gap["half_width"])
    return f"| {gap['variant']} | {gap['better']} | {gap['other']} | {difference} | {p_text(gap['p']) or DASH} |"


def _number(value: float, half_width: float | None) -> str:
    return f"{value:.5f}" + ("" if half_width is None else f" ± {half_width:.5f}")
