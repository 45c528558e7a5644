"""Build the engine's page from its measurements, on any machine; a Markdown summary; or the roofline picture alone."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.base import Model, build
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, write_text
from robuq_bench.measure.engine_records import ForwardTable, Kernels
from robuq_bench.report.engine_markdown import to_markdown
from robuq_bench.report.engine_page import render
from robuq_bench.report.engine_plots import roofline

EXAMPLE = """robuq-bench engine-report --kernels results/reference/engine/kernels.json \\
    --table results/reference/engine/table.json --out reports/engine/index.html"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernels", type=Path, required=True, help="JSON of `robuq-bench engine-kernels`")
    parser.add_argument("--table", type=Path, help="JSON of `robuq-bench engine-table`; page and summary need it")
    parser.add_argument("--out", type=Path, help="HTML to write")
    parser.add_argument("--markdown", type=Path, help="Markdown to write")
    parser.add_argument("--roofline", type=Path, help="SVG to write")


def run(args: argparse.Namespace) -> None:
    if bool(args.out or args.markdown) != bool(args.table) or not (args.table or args.roofline):
        raise BenchError("engine-report: give --table with --out or --markdown, or --roofline for the picture alone")
    kernels = read(args.kernels, Kernels)
    if args.roofline:
        write_text(args.roofline, roofline(kernels).replace("currentColor", "#444444"))
    if args.table:
        table = read(args.table, ForwardTable)
        for path, text in ((args.out, render), (args.markdown, to_markdown)):
            if path:
                write_text(path, text(kernels, table))


def read(path: Path, kind: type[Model]) -> Model:
    """A record of the engine's measurements. Raises BenchError when damaged or without provenance."""
    raw = read_json(path)
    provenance.check(raw if isinstance(raw, dict) else {}, str(path))
    return build(kind, raw, str(path))
