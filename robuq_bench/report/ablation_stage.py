"""Collect the rows of one ablation: a table, what to plot, and one sentence made from the numbers."""

import argparse
from pathlib import Path
from typing import Any

from robuq_bench import provenance
from robuq_bench.config.ablation import Ablation, load_ablation
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.files import write_json
from robuq_bench.metrics.extractors import label
from robuq_bench.report.inputs import read_results
from robuq_bench.report.rows import Row

EXAMPLE = "robuq-bench ablate --preset quick --name rotation --results results/quick --out rotation.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--name", required=True, help="ablation in workflows/ablations.yaml")
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset, ablation = load_preset(args.preset, args.set), load_ablation(args.name)
    plan = ablation.rows()
    results = read_results(args.results, preset, [f"{recipe}/{variant}" for _, recipe, variant in plan])
    rows = [_line(setting, variant, row) for (setting, _, variant), row in zip(plan, results.rows, strict=True)]
    distance = label("FD", results.floor.scores.extractor)
    record = {
        "name": args.name,
        "title": ablation.title,
        "question": ablation.question,
        "sentence": " ".join(sentence(ablation, variant, rows, distance) for variant in ablation.variants),
        "columns": _columns(results.floor.scores.extractor),
        "rows": rows,
        "plot": {
            "x": "setting",
            "y": "FD",
            "series": "variant",
            "xlabel": "",
            "ylabel": distance,
            "log": False,
        },
        "label": "simulated",
        "provenance": provenance.collect(),
    }
    write_json(args.out, record)


def _line(setting: str, variant: str, row: Row) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        return row.figures[name].mean if name in row.figures else None

    kid = mean("KID")
    return {
        "setting": setting,
        "variant": variant,
        "status": row.status,
        "FD": mean("FD"),
        "sFD": mean("sFD"),
        "KID": None if kid is None else 1000 * kid,
        "held_out_loss": mean("held_out_loss"),
        "size": mean("size"),
        "seeds": len(row.runs),
    }


def sentence(ablation: Ablation, variant: str, rows: list[dict[str, Any]], distance: str) -> str:
    """What the numbers show at one variant: the reference, the best and the worst setting."""
    here = [row for row in rows if row["variant"] == variant]
    ranked = sorted((row for row in here if row["FD"] is not None), key=lambda row: row["FD"])
    diverged = [row["setting"] for row in here if row["FD"] is None]
    if not ranked:
        return f"At {variant} every setting diverged."
    best, worst = ranked[0], ranked[-1]
    first = next(iter(ablation.settings))
    reference = next((row for row in ranked if row["setting"] == first), None)
    text = f"At {variant} '{best['setting']}' has the lowest {distance} ({best['FD']:.4g})"
    if reference and reference is not best:
        text += f", {reference['FD'] - best['FD']:.4g} below the reference '{first}' ({reference['FD']:.4g})"
    text += f", and '{worst['setting']}' the highest ({worst['FD']:.4g})."
    if len(ranked) > 1 and ranked[0]["seeds"] == 1:
        text += " One seed: whether that exceeds the spread between seeds is not known."
    if diverged:
        text += f" Diverged: {', '.join(diverged)}."
    return text


def _columns(extractor: str) -> list[dict[str, str]]:
    return [
        {"key": "setting", "title": "Setting", "format": ""},
        {"key": "variant", "title": "W/A", "format": ""},
        {"key": "FD", "title": label("FD", extractor), "format": ".4g"},
        {"key": "sFD", "title": label("sFD", extractor), "format": ".4g"},
        {"key": "KID", "title": f"{label('KID', extractor)} x1000", "format": ".4g"},
        {"key": "held_out_loss", "title": "Held-out loss", "format": ".4f"},
        {"key": "size", "title": "Bytes (packed)", "format": ",.0f"},
        {"key": "status", "title": "Status", "format": ""},
        {"key": "seeds", "title": "Seeds", "format": "d"},
    ]
