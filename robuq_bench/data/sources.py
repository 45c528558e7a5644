"""Where images come from, by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from robuq_bench.data import cifar, fashion_mnist, folder, idx
from robuq_bench.data.images import ImageSet
from robuq_bench.errors import BenchError, unknown


def _digits(path: Path | None) -> ImageSet:
    """scikit-learn's 1 797 handwritten digits, grey 8x8, 0 ... 16 scaled to 0 ... 255. Takes no path."""
    from sklearn.datasets import load_digits  # slow to import, so only when asked for

    if path is not None:
        raise BenchError(f"{path}: source 'digits' comes with scikit-learn and takes no path; leave it out")
    data = load_digits()
    images = ((data.images.astype(np.uint32) * 255 + 8) // 16).astype(np.uint8)
    return ImageSet(images[..., None], data.target.astype(np.int64), tuple(map(str, data.target_names)))


def _by_path(name: str, what: str, read: Callable[[Path], ImageSet]) -> Callable[[Path | None], ImageSet]:
    """A source that has no packaged default."""

    def source(path: Path | None) -> ImageSet:
        if path is None:
            raise BenchError(f"source '{name}' needs a path: the folder with {what}")
        return read(path)

    return source


SOURCES: dict[str, Callable[[Path | None], ImageSet]] = {
    "fashion-mnist": fashion_mnist.read,
    "idx": _by_path("idx", "train-images-idx3-ubyte and train-labels-idx1-ubyte", idx.read),
    "cifar10": _by_path("cifar10", "data_batch_1 ... 5 or data_batch_1.png ... 5", cifar.read),
    "folder": _by_path("folder", "one subfolder of images per class", lambda path: folder.read(folder.by_class(path))),
    "flat": _by_path("flat", "images of one kind", lambda path: folder.read(folder.flat(path))),
    "digits": _digits,
}


def load(source: str, path: Path | str | None = None) -> ImageSet:
    """The images of `source`, a name in SOURCES, from the folder `path` (None: the packaged default, if any).

    Images keep their native size. Only reads: nothing is downloaded.
    Raises BenchError, one line naming the file, for anything missing, damaged or mis-shaped.
    """
    if source not in SOURCES:
        raise unknown("data source", source, SOURCES)
    place = None if path is None else Path(path).expanduser()
    if place is not None and not place.is_dir():
        what = "is not a folder" if place.exists() else "no such folder"
        raise BenchError(f"{place}: {what}; give the folder that holds the '{source}' data")
    try:
        return SOURCES[source](place)
    except OSError as error:
        raise BenchError(f"{error.filename or place}: cannot be read ({error.strerror})") from error
