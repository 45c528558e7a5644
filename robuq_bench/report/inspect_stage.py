"""Build the page of an inspection: one self-contained, offline HTML file from the JSON of `robuq-bench inspect`."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.config.base import build
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, write_text
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.report.inspect_page import render

EXAMPLE = """robuq-bench inspect-page --inspection results/quick/inspect/robuq_uniform/W1.58A2/seed0.json \\
    --out reports/quick/inspect.html"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inspection", type=Path, required=True, help="JSON of `robuq-bench inspect`")
    parser.add_argument("--out", type=Path, required=True, help="HTML to write")


def run(args: argparse.Namespace) -> None:
    write_text(args.out, render(read(args.inspection)))


def read(path: Path) -> Inspection:
    """Raises BenchError, one line, when the file is damaged, incomplete, or has no whole provenance."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise BenchError(f"{path}: holds no inspection; make it with `robuq-bench inspect`")
    provenance.check(record, str(path))
    return build(Inspection, record, str(path))
