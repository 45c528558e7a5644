"""What a page shows of a row besides its scores: images and training losses, read from the files of its runs."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from robuq_bench.config.preset import Preset
from robuq_bench.data import ImageSet
from robuq_bench.errors import BenchError
from robuq_bench.report.inputs import SAMPLES, TRAIN, run_folder
from robuq_bench.report.records import Train, read_record
from robuq_bench.report.rows import Row
from robuq_bench.sample import archive
from robuq_bench.train.images import images


def real_images(preset: Preset) -> ImageSet | None:
    """Held-out real images, or None where the data are not at hand: a report may be built on another machine."""
    try:
        return images(preset)[1]
    except BenchError:
        return None


def samples(folder: Path, row: Row) -> archive.Samples:
    """Images of the row's first seed. Raises BenchError when they are not of the model in the table."""
    run = row.runs[0]
    path = run_folder(folder, row.variant, run.seed) / SAMPLES
    found = archive.load(path)
    if found.card.get("packed") != run.packed:
        raise BenchError(f"{path}: images of another model than the table's; sample, evaluate and make the table again")
    return found


def losses(folder: Path, row: Row) -> list[float]:
    """Training loss of every step, the mean over seeds; up to the shortest run."""
    paths: Iterable[Path] = (run_folder(folder, row.variant, run.seed) / TRAIN for run in row.runs)
    return [fmean(step) for step in zip(*(read_record(path, Train).losses for path in paths), strict=False)]
