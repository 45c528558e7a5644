"""Collect the rows of one ablation: a table, what to plot, and one sentence made from the numbers."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robuq_bench import provenance
from robuq_bench.allocate.ablations import for_preset
from robuq_bench.config.ablation import EXAMPLE as SWEEP
from robuq_bench.config.ablation import Ablation, load_ablation, parse_sweep
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.metrics.extractors import label
from robuq_bench.report.comparison import LEVEL, METRIC, Comparison, compare_pairs, explanation, p_text
from robuq_bench.report.inputs import drawn_by, read_results
from robuq_bench.report.partial import read_available
from robuq_bench.report.records import Floor
from robuq_bench.report.rows import Row, further

EXAMPLE = "robuq-bench ablate --preset quick --name rotation --results results/quick --out rotation.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="ablation in workflows/ablations.yaml")
    which.add_argument("--sweep", metavar="ROWS", help=f"one of your own: '{SWEEP}'")
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--partial", action="store_true", help="leave settings out that were not run, and say so")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    name, ablation = parse_sweep(args.sweep) if args.sweep else (args.name, load_ablation(args.name))
    ablation, left_out = for_preset(preset, name, ablation)
    keys = {f"{recipe}/{variant}": setting for setting, recipe, variant in ablation.rows()}
    if args.partial:
        results, lost = read_available(args.results, preset, keys)
        found, not_run = comparable(name, ablation, [(keys[row.key], row) for row in results.rows], lost)
        left_out = left_out | not_run
    else:
        results = read_results(args.results, preset, keys)
        found = [(keys[row.key], row) for row in results.rows]
    compared = against_reference(found, next(iter(ablation.settings)))
    others = [scores.extractor for scores in results.floor.also]
    rows = [
        {**_line(setting, row, compared.get(row.key), others), "expected": ablation.expected.get(setting)}
        for setting, row in found
    ]
    variants = dict.fromkeys(row.variant.name for _, row in found)
    distance = label(METRIC, results.floor.scores.extractor)
    tested = sum(comparison.p is not None for comparison in compared.values())
    record = {
        "name": name,
        "title": ablation.title,
        "question": ablation.question,
        "sentence": " ".join(sentence(ablation, variant, rows, distance) for variant in variants),
        "columns": _columns(results.floor),
        "rows": rows,
        "note": " ".join(_notes(explanation(distance, tested) if tested else "", left_out)),
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


Plan = list[tuple[str, Row]]
"""(setting, row), the settings of each variant in their order."""


def comparable(name: str, ablation: Ablation, found: Plan, lost: dict[str, str]) -> tuple[Plan, dict[str, str]]:
    """(the rows at variants whose reference was run, what is left out -> why).

    lost: "recipe/variant" -> what is missing of it. Raises BenchError where nothing is left to compare.
    """
    reference = next(iter(ablation.settings))
    variants = {row.variant.name for setting, row in found if setting == reference}
    kept = [(setting, row) for setting, row in found if row.variant.name in variants]
    if not any(setting != reference for setting, _ in kept):
        raise BenchError(f"ablation {name}: the reference '{reference}' and another setting have to be run first")
    there = {row.key for _, row in kept}
    rows = [(f"{setting}, {variant}", f"{recipe}/{variant}") for setting, recipe, variant in ablation.rows()]
    return kept, {label: lost.get(key, "its reference was not run") for label, key in rows if key not in there}


def _notes(tests: str, left_out: dict[str, str]) -> Iterator[str]:
    """What is said below the table."""
    if tests:
        yield tests
    for setting, reason in left_out.items():
        yield f"'{setting}' was left out: {reason}."


def against_reference(plan: Plan, reference: str) -> dict[str, Comparison]:
    """Row key -> the row against that of the setting `reference` at its variant, all of them one family.

    Where either diverged there is no comparison.
    """
    first = {row.variant.name: row for setting, row in plan if setting == reference}
    pairs = [(first[row.variant.name], row) for setting, row in plan if setting != reference]
    found = compare_pairs((one, other) for one, other in pairs if one.competes and other.competes)
    return {comparison.other: comparison for comparison in found}


def _line(setting: str, row: Row, against: Comparison | None, others: Sequence[str]) -> dict[str, Any]:
    """A line of the table; others: names of the further extractors."""

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
        **{further("FD", other): mean(further("FD", other)) for other in others},
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


def _columns(floor: Floor) -> list[dict[str, str]]:
    extractor, others = floor.scores.extractor, [scores.extractor for scores in floor.also]
    return [
        {"key": "setting", "title": "Setting", "format": ""},
        {"key": "variant", "title": "W/A", "format": ""},
        {"key": "FD", "title": label("FD", extractor), "format": ".4g"},
        {"key": "difference", "title": "Against reference", "format": "+.4g"},
        {"key": "half_width", "title": "±", "format": ".2g"},
        {"key": "p", "title": "p", "format": ".2g"},
        *({"key": further("FD", other), "title": label("FD", other), "format": ".4g"} for other in others),
        {"key": "sFD", "title": label("sFD", extractor), "format": ".4g"},
        {"key": "KID", "title": f"{label('KID', extractor)} x1000", "format": ".4g"},
        {"key": "held_out_loss", "title": "Held-out loss", "format": ".4f"},
        {"key": "size", "title": "Bytes (packed)", "format": ",.0f"},
        {"key": "status", "title": "Status", "format": ""},
        {"key": "seeds", "title": "Seeds", "format": "d"},
    ]
