"""Build the page: one self-contained, offline HTML file from a table and the results it was made of.

Without --results and --table, the page is about the given ablations alone.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from robuq_bench.allocate.allocation import Profile
from robuq_bench.config.base import build
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.data import ImageSet
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, sha256_file, write_text
from robuq_bench.report.allocations import Allocated
from robuq_bench.report.grid import shown_classes, strip
from robuq_bench.report.inputs import BITS, PROFILE, SAMPLES, TRAIN, run_folder
from robuq_bench.report.page import Strip, render, render_ablations
from robuq_bench.report.plots import Curve
from robuq_bench.report.records import Ablation, Bits, Train, read_record
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Table
from robuq_bench.sample import archive
from robuq_bench.train.images import images

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
    real = _real(preset)
    strips, columns = _strips(results, table, real)
    classes = [real.classes[k] if real else f"class {k}" for k in columns]
    curves = [Curve(row, _losses(results, row)) for row in table.rows]
    allocations = [
        _allocated(results, row) for row in table.rows if row.variant.method.allocation and row.status == "ok"
    ]
    return render(table, strips, classes, curves, ablations, allocations)


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


def _real(preset: Preset) -> ImageSet | None:
    """Held-out real images, or None where the data are not at hand: a report may be built on another machine."""
    try:
        return images(preset)[1]
    except BenchError:
        return None


def _strips(folder: Path, table: Table, real: ImageSet | None) -> tuple[list[Strip], range]:
    """The lines of the image grid, and the classes they show."""
    drawn = {row.key: _samples(folder, row) for row in table.rows if row.status == "ok"}
    labels = real.labels if real else next((s.labels for s in drawn.values()), None)
    columns = shown_classes(0 if labels is None else int(labels.max()) + 1)
    strips = [Strip("Real, held out", strip(real.images, real.labels, columns))] if real else []
    for row in table.rows:
        samples = drawn.get(row.key)
        png = strip(samples.images, samples.labels, columns) if samples else None
        strips.append(Strip(row.name, png, row.reason))
    return strips, columns


def _samples(folder: Path, row: Row) -> archive.Samples:
    """Images of the row's first seed. Raises BenchError when they are not of the model in the table."""
    run = row.runs[0]
    path = run_folder(folder, row.variant, run.seed) / SAMPLES
    samples = archive.load(path)
    if samples.card.get("packed") != run.packed:
        raise BenchError(f"{path}: images of another model than the table's; sample, evaluate and make the table again")
    return samples


def _losses(folder: Path, row: Row) -> Sequence[float]:
    """Training loss of every step, the mean over seeds; up to the shortest run."""
    paths: Iterable[Path] = (run_folder(folder, row.variant, run.seed) / TRAIN for run in row.runs)
    return [fmean(step) for step in zip(*(read_record(path, Train).losses for path in paths), strict=False)]
