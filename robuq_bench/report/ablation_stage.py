"""Collect the rows of one ablation: a table, what to plot, and one sentence made from the numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robuq_bench import provenance
from robuq_bench.config.ablation import EXAMPLE as SWEEP
from robuq_bench.config.ablation import Ablation, load_ablation, parse_sweep
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.files import write_json
from robuq_bench.metrics.extractors import label
from robuq_bench.report.comparison import LEVEL, METRIC, Comparison, compare_pairs, explanation, p_text
from robuq_bench.report.inputs import drawn_by, read_results
from robuq_bench.report.rows import Row

EXAMPLE = "robuq-bench ablate --preset quick --name rotation --results results/quick --out rotation.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="ablation in workflows/ablations.yaml")
    which.add_argument("--sweep", metavar="ROWS", help=f"one of your own: '{SWEEP}'")
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    name, ablation = parse_sweep(args.sweep) if args.sweep else (args.name, load_ablation(args.name))
    plan = ablation.rows()
    results = read_results(args.results, preset, [f"{recipe}/{variant}" for _, recipe, variant in plan])
    compared = against_reference(results.rows, len(ablation.settings))
    rows = [_line(setting, row, compared.get(row.key)) for (setting, *_), row in zip(plan, results.rows, strict=True)]
    distance = label(METRIC, results.floor.scores.extractor)
    tested = sum(comparison.p is not None for comparison in compared.values())
    record = {
        "name": name,
        "title": ablation.title,
        "question": ablation.question,
        "sentence": " ".join(sentence(ablation, variant, rows, distance) for variant in ablation.variants),
        "columns": _columns(results.floor.scores.extractor),
        "rows": rows,
        "note": explanation(distance, tested) if tested else "",
        "plot": {
            "x": "setting",
            "y": "FD",
            "series": "variant",
            "xlabel": "",
            "ylabel": distance + (", 95 % intervals" if tested else ""),
            "error": "FD_half_width",
            "log": False,
        },
        "label": drawn_by(results.sampling),
        "provenance": provenance.collect(),
    }
    write_json(args.out, record)


def against_reference(rows: Sequence[Row], settings: int) -> dict[str, Comparison]:
    """Row key -> the row against the reference of its variant, all of them one family.

    rows: `settings` of each variant, the first of them the reference. Where either diverged there is no comparison.
    """
    groups = [rows[start : start + settings] for start in range(0, len(rows), settings)]
    pairs = [(first, row) for first, *others in groups for row in others if first.competes and row.competes]
    return {comparison.other: comparison for comparison in compare_pairs(pairs)}


def _line(setting: str, row: Row, against: Comparison | None) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        return row.figures[name].mean if name in row.figures else None

    kid = mean("KID")
    return {
        "setting": setting,
        "variant": row.variant.name,
        "status": row.status,
        "FD": mean("FD"),
        "FD_half_width": row.figures["FD"].half_width if row.figures else None,
        "difference": against and against.difference.mean,
        "half_width": against and against.difference.half_width,
        "p": against and against.p,
        "sFD": mean("sFD"),
        "KID": None if kid is None else 1000 * kid,
        "held_out_loss": mean("held_out_loss"),
        "size": mean("size"),
        "seeds": len(row.runs),
    }


def sentence(ablation: Ablation, variant: str, rows: list[dict[str, Any]], distance: str) -> str:
    """What the numbers show at one variant: the best and the worst setting, and who differs from the reference."""
    here = [row for row in rows if row["variant"] == variant]
    ranked = sorted((row for row in here if row["FD"] is not None), key=lambda row: row["FD"])
    if not ranked:
        return f"At {variant} every setting diverged."
    text = f"At {variant} '{ranked[0]['setting']}' has the lowest {distance} ({ranked[0]['FD']:.4g})"
    if len(ranked) > 1:
        text += f", and '{ranked[-1]['setting']}' the highest ({ranked[-1]['FD']:.4g})"
    parts = [text, _tested(ablation, ranked)]
    if diverged := [row["setting"] for row in here if row["FD"] is None]:
        parts.append(f"Diverged: {', '.join(diverged)}")
    return " ".join(f"{part}." for part in parts if part)


def _tested(ablation: Ablation, ranked: list[dict[str, Any]]) -> str:
    """What the tests against the reference say; `ranked`: the rows that came through. "" where none was compared."""
    compared = [row for row in ranked if row["difference"] is not None]
    if not compared:
        return ""
    if all(row["p"] is None for row in compared):
        return "One seed: no difference can be tested"
    sure: dict[str, list[str]] = {"better": [], "worse": []}
    for row in compared:
        if row["p"] is not None and row["p"] < LEVEL:
            size = f"{row['difference']:+.3g} ± {row['half_width']:.2g}, {p_text(row['p'])}"
            sure["worse" if row["difference"] > 0 else "better"].append(f"'{row['setting']}' ({size})")
    found = [f"{word}: {', '.join(names)}" for word, names in sure.items() if names]
    reference = next(iter(ablation.settings))
    if not found:
        return f"No setting differs from the reference '{reference}' beyond chance"
    return f"Beyond chance against the reference '{reference}', {'; '.join(found)}"


def _columns(extractor: str) -> list[dict[str, str]]:
    return [
        {"key": "setting", "title": "Setting", "format": ""},
        {"key": "variant", "title": "W/A", "format": ""},
        {"key": "FD", "title": label("FD", extractor), "format": ".4g"},
        {"key": "difference", "title": "Against reference", "format": "+.4g"},
        {"key": "half_width", "title": "±", "format": ".2g"},
        {"key": "p", "title": "p", "format": ".2g"},
        {"key": "sFD", "title": label("sFD", extractor), "format": ".4g"},
        {"key": "KID", "title": f"{label('KID', extractor)} x1000", "format": ".4g"},
        {"key": "held_out_loss", "title": "Held-out loss", "format": ".4f"},
        {"key": "size", "title": "Bytes (packed)", "format": ",.0f"},
        {"key": "status", "title": "Status", "format": ""},
        {"key": "seeds", "title": "Seeds", "format": "d"},
    ]
