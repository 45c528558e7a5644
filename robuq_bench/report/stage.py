"""Build the page: one self-contained, offline HTML file from a table and the results it was made of.

Without --results and --table, the page is about the given ablations alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from robuq_bench.allocate.allocation import Profile
from robuq_bench.config.base import build
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.data import ImageSet
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, sha256_file, write_text
from robuq_bench.report.allocations import Allocated
from robuq_bench.report.anchors import Verdict, judge
from robuq_bench.report.grid import shown_classes, strip
from robuq_bench.report.inputs import BITS, PROFILE, run_folder
from robuq_bench.report.page import Strip, render, render_ablations
from robuq_bench.report.pictures import losses, real_images, samples
from robuq_bench.report.plots import Curve
from robuq_bench.report.records import Ablation, Bits, read_record
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Table

EXAMPLE = """robuq-bench report --preset quick --results results/quick --table results/quick/table.json \\
    --out reports/quick/index.html"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--results", type=Path, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--table", type=Path, help="JSON of `robuq-bench table`")
    parser.add_argument("--ablation", type=Path, nargs="+", action="extend", default=[], help="JSON of ablations")
    parser.add_argument("--out", type=Path, required=True, help="HTML to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    ablations = [read_record(path, Ablation) for path in args.ablation]
    if args.table and args.results:
        page = _page(preset, args.results, args.table, ablations)
    elif ablations and not (args.table or args.results):
        page = render_ablations(Path(args.preset).stem, preset.title, ablations)
    else:
        raise BenchError("report: give --results and --table together, or --ablation alone")
    write_text(args.out, page)


def _page(preset: Preset, results: Path, table_path: Path, ablations: Sequence[Ablation]) -> str:
    table = build(Table, read_json(table_path), str(table_path))
    real = real_images(preset)
    strips, columns = _strips(results, table, real)
    classes = [real.classes[k] if real else f"class {k}" for k in columns]
    curves = [Curve(row, losses(results, row)) for row in table.rows]
    allocations = [
        _allocated(results, row) for row in table.rows if row.variant.method.allocation and row.status == "ok"
    ]
    return render(table, strips, classes, curves, ablations, allocations, _anchors(preset, table))


def _anchors(preset: Preset, table: Table) -> list[Verdict]:
    """Published scores beside those of the full-precision row, where the preset names some."""
    known = [row.runs[0].scores for row in table.rows if row.variant.method.training == "none" and row.runs[0].scores]
    return judge(preset.anchors, known[0], table.sampling) if known else []


def _allocated(folder: Path, row: Row) -> Allocated:
    """The allocation behind a row. Raises BenchError when it is not the one that the row was trained with."""
    places = [run_folder(folder, row.variant, run.seed) for run in row.runs]
    found = [read_record(place / BITS, Bits) for place in places]
    for place, run, bits in zip(places, row.runs, found, strict=True):
        if bits.bits != run.bits:
            raise BenchError(f"{place / BITS}: other bits than the table's row was trained with; make the row again")
    path = places[0] / PROFILE
    profile = build(Profile, read_json(path), str(path))
    if sha256_file(path) != found[0].profile:
        raise BenchError(f"{path}: another profile than {BITS} beside it was made from; allocate again")
    return Allocated(row, tuple(found), profile)


def _strips(folder: Path, table: Table, real: ImageSet | None) -> tuple[list[Strip], range]:
    """The lines of the image grid, and the classes they show."""
    drawn = {row.key: samples(folder, row) for row in table.rows if row.status == "ok"}
    labels = real.labels if real else next((s.labels for s in drawn.values()), None)
    columns = shown_classes(0 if labels is None else int(labels.max()) + 1)
    strips = [Strip("Real, held out", strip(real.images, real.labels, columns))] if real else []
    for row in table.rows:
        own = drawn.get(row.key)
        png = strip(own.images, own.labels, columns) if own else None
        strips.append(Strip(row.name, png, row.reason))
    return strips, columns
