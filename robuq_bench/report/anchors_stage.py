"""Compare the full-precision model's scores with published ones, before a GPU-month is spent on the wrong protocol."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.report.anchors import FAILS, PASSES, Verdict, judge, outcome
from robuq_bench.report.records import DASH, Metrics, read_record

EXAMPLE = """robuq-bench anchors --preset paper --metrics results/paper/full_precision/W32A32/seed0/metrics.json \\
    --out anchors.json"""
WIDTH = 120  # columns where there is no terminal
COLOURS = {PASSES: "green", FAILS: "red"}


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--metrics", type=Path, required=True, help="scores of the full-precision row")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    if not preset.anchors:
        raise BenchError(
            f"preset '{args.preset}' names no anchors: nobody published scores of its full-precision model"
        )
    metrics = read_record(args.metrics, Metrics)
    if metrics.scores is None:
        raise BenchError(f"{args.metrics}: the full-precision row has no scores ({metrics.reason})")
    verdicts = judge(preset.anchors, metrics.scores, metrics.protocol)
    verdict, sentence = outcome(verdicts)
    record = {
        "verdict": verdict,
        "sentence": sentence,
        "anchors": [asdict(v) | {"anchor": v.anchor.model_dump()} for v in verdicts],
        "protocol": metrics.protocol,
        "extractor": metrics.scores.extractor,
        "provenance": provenance.collect(),
    }
    write_json(args.out, record)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(drawn(verdicts))
    print(sentence)


def drawn(verdicts: list[Verdict]) -> Table:
    table = Table(title="Full precision against published scores", title_justify="left")
    for heading in ("source", "images", "steps", "cfg", "score", "published", "ours", ""):
        table.add_column(heading, justify="left" if heading in ("source", "score", "") else "right")
    for v in verdicts:
        ours = DASH if v.ours is None else f"{v.ours:.4g}"
        published = f"{v.published:g}" + (f" ± {v.tolerance:g}" if v.tolerance else "")
        colour = COLOURS.get(v.verdict)
        verdict = f"[{colour}]{v.verdict}[/]" if colour else v.verdict + (f": {v.reason}" if v.reason else "")
        anchor = v.anchor
        place = (str(anchor.n), str(anchor.steps), f"{anchor.guidance:g}")
        table.add_row(anchor.source, *place, v.score, published, ours, verdict)
    return table
