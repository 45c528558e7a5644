"""Collect rows into one table: JSON (with all figures, seeds and provenance), CSV, Markdown and LaTeX."""

import argparse
from pathlib import Path

from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.files import write_json, write_text
from robuq_bench.report.formats import to_csv, to_latex, to_markdown
from robuq_bench.report.inputs import read_results
from robuq_bench.report.partial import read_available
from robuq_bench.report.tabulate import make_table

EXAMPLE = "robuq-bench table --preset quick --results results/quick --out results/quick/table"
WRITERS = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--rows", nargs="+", metavar="RECIPE/VARIANT", help="rows in this order; default: the preset's")
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--partial", action="store_true", help="take what is there, and say what is not")
    parser.add_argument("--out", type=Path, required=True, help="path of the files to write, without suffix")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    rows = args.rows or preset.rows
    if args.partial:
        results, left_out = read_available(args.results, preset, rows)
    else:
        results, left_out = read_results(args.results, preset, rows), {}
    table = make_table(Path(args.preset).stem, preset.title, results, left_out)
    for suffix, text in WRITERS.items():
        write_text(args.out.with_name(args.out.name + suffix), text(table))
    write_json(args.out.with_name(args.out.name + ".json"), table.model_dump(mode="json"))
