"""Collect the rows of a study, all seeds, with thinned curves and images of the preset's rows, in one JSON."""

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path

from robuq_bench import __version__, provenance
from robuq_bench.allocate.ablations import study_rows
from robuq_bench.config.ablation import load_ablations
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.config.recipe import full_rows
from robuq_bench.data import ImageSet
from robuq_bench.files import write_json
from robuq_bench.report.grid import shown_classes, strip
from robuq_bench.report.inputs import SAMPLES, read_results, run_folder
from robuq_bench.report.partial import read_available
from robuq_bench.report.pictures import losses, real_images, samples
from robuq_bench.report.plots import running_mean
from robuq_bench.report.rows import Row
from robuq_bench.report.study import Study

EXAMPLE = "robuq-bench study-rows --preset gpu --results results/gpu --out results/gpu/study.json"
POINTS = 50  # of a thinned curve


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder with <recipe>/<variant>/seed<k>/")
    parser.add_argument("--rows", nargs="+", metavar="RECIPE/VARIANT", help="default: the preset's whole study")
    parser.add_argument("--partial", action="store_true", help="take what is there, and say what is not")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    rows = dict.fromkeys(args.rows or study_rows(preset, load_ablations(), full_rows()))
    left_out: dict[str, str] = {}
    if args.partial:
        results, left_out = read_available(args.results, preset, rows)
    else:
        results = read_results(args.results, preset, rows)
    shown = [row for row in results.rows if row.key in preset.rows]
    if args.partial:
        shown = [row for row in shown if (run_folder(args.results, row.variant, row.runs[0].seed) / SAMPLES).exists()]
    classes, strips = _strips(args.results, shown, real_images(preset))
    study = Study(
        version=__version__,
        preset=Path(args.preset).stem,
        title=preset.title,
        sampling=results.sampling,
        floor=results.floor.scores,
        floor_also=results.floor.also,
        floor_provenance=results.floor.provenance,
        rows=results.rows,
        left_out=left_out,
        classes=classes,
        strips=strips,
        curves={row.key: thinned(losses(args.results, row)) for row in results.rows},
    )
    write_json(args.out, study.model_dump(mode="json") | {"provenance": provenance.collect()})


def thinned(values: list[float]) -> tuple[float, ...]:
    """The running mean of `values` at `POINTS` evenly spread places, the last one included; all of a short curve."""
    if len(values) <= POINTS:
        return tuple(values)
    smooth = running_mean(values, len(values) // POINTS)
    return tuple(smooth[(i + 1) * len(smooth) // POINTS - 1] for i in range(POINTS))


def _strips(folder: Path, rows: Sequence[Row], real: ImageSet | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the classes shown, and a strip of each of `rows`; real images first, where they are at hand."""
    drawn = {row.key: samples(folder, row) for row in rows if row.status == "ok"}
    labels = real.labels if real else next((one.labels for one in drawn.values()), None)
    columns = shown_classes(0 if labels is None else int(labels.max()) + 1)
    pictures = ({"": real} if real else {}) | drawn
    found = {key: _text(strip(one.images, one.labels, columns, side=1)) for key, one in pictures.items()}
    names = tuple(real.classes[k] if real else f"class {k}" for k in columns)
    return names, found | {row.key: "" for row in rows if row.status != "ok"}


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()
