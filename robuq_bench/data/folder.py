"""A folder of images: one subfolder per class, or all of one kind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robuq_bench.data.decode import pixels
from robuq_bench.data.images import ImageSet
from robuq_bench.errors import BenchError

# JPEG is lossy: good enough to train on, never what this package writes.
SUFFIXES = (".png", ".webp", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Listing:
    """Image files with one class each: `labels` int64 [N], indices into `classes`."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def by_class(path: Path) -> Listing:
    """The files of `path`/CLASS/*, classes and files in sorted order; names starting with a dot are skipped.

    Raises BenchError when there are no subfolders, or one is empty or holds something else than images.
    """
    folders = [p for p in _visible(path) if p.is_dir()]
    if not folders:
        raise BenchError(f"{path}: no subfolders; put the images of each class into a subfolder named after it")
    files = [(file, label) for label, folder in enumerate(folders) for file in _files(folder)]
    labels = np.array([label for _, label in files], np.int64)
    return Listing(tuple(file for file, _ in files), labels, tuple(folder.name for folder in folders))


def flat(path: Path) -> Listing:
    """All image files in and below `path` as one class "all", sorted by path (as FFHQ comes)."""
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise BenchError(f"{path}: no images ({', '.join(SUFFIXES)}) in it or below; give the folder that holds them")
    return Listing(tuple(files), np.zeros(len(files), np.int64), ("all",))


def read(listing: Listing) -> ImageSet:
    """All images of a listing, each cut to its central square; all squares must be equal. Grey images become RGB if
    any is RGB.

    Raises BenchError naming the file that is no image, does not decode, or has another size.
    """
    files = listing.files
    images = [_square(pixels(file)) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise BenchError(
                f"{file}: central square of {len(image)} pixels, but {files[0]} has {len(images[0])}; "
                "resize the images to one size"
            )
    channels = max(image.shape[2] for image in images)
    stacked = np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])
    return ImageSet(stacked, listing.labels, listing.classes)


LISTINGS = {"folder": by_class, "flat": flat}
"""By the preset's `data.source`."""


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    files = _visible(folder)
    if not files:
        raise BenchError(f"{folder}: no images; add some or remove the folder")
    for file in files:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise BenchError(f"{file}: not an image file ({', '.join(SUFFIXES)}); move it elsewhere")
    return files


def _square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
