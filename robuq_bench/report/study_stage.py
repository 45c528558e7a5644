"""Build the study's page, and its Markdown summary, from collected JSON: on any machine, without images or weights."""

import argparse
from pathlib import Path

from robuq_bench.config.base import build
from robuq_bench.errors import BenchError
from robuq_bench.files import existing, read_json, write_text
from robuq_bench.measure.engine_records import ForwardTable, Kernels
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.report.records import Ablation, read_record
from robuq_bench.report.study import read_study
from robuq_bench.report.study_findings import costs
from robuq_bench.report.study_markdown import MARKS, findings, insert, to_markdown
from robuq_bench.report.study_page import render

EXAMPLE = """robuq-bench study-report --study results/gpu/study.json --out reports/gpu/study.html \\
    --kernels results/reference/engine/kernels.json --ablation results/gpu/ablations/beat_robuq.json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, nargs="+", required=True, help="JSON of `study-rows`, or of `table`")
    parser.add_argument("--ablation", type=Path, nargs="+", action="extend", default=[], help="JSON of ablations")
    parser.add_argument("--inspection", type=Path, help="JSON of `robuq-bench inspect`")
    parser.add_argument("--kernels", type=Path, help="JSON of `robuq-bench engine-kernels`")
    parser.add_argument("--table", type=Path, help="JSON of `robuq-bench engine-table`")
    parser.add_argument("--out", type=Path, help="HTML to write")
    parser.add_argument("--markdown", type=Path, help="Markdown to write")
    parser.add_argument("--into", type=Path, help=f"Markdown to update between {' and '.join(MARKS)}")


def run(args: argparse.Namespace) -> None:
    if not (args.out or args.markdown or args.into):
        raise BenchError("study-report: give --out, --markdown or --into")
    study = read_study(args.study)
    ablations = [read_record(path, Ablation) for path in args.ablation]
    inspection = args.inspection and build(Inspection, read_json(args.inspection), str(args.inspection))
    kernels = args.kernels and build(Kernels, read_json(args.kernels), str(args.kernels))
    table = args.table and build(ForwardTable, read_json(args.table), str(args.table))
    if args.out:
        write_text(args.out, render(study, ablations, inspection, kernels, table))
    if args.markdown:
        write_text(args.markdown, to_markdown(study, ablations, inspection))
    if args.into:
        document = existing(args.into, "document").read_text(encoding="utf-8")
        write_text(args.into, insert(document, findings(study, ablations, inspection)))
    for device, minutes in costs(study):
        print(f"{device}: {minutes}")
