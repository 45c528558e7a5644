"""The idx format of MNIST and its relatives: big-endian header, then unsigned bytes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from robuq_bench.data.images import ImageSet, check_labels
from robuq_bench.errors import BenchError

# The folder itself (Debian's layout), then torchvision's.
FOLDERS = (".", "raw", "FashionMNIST/raw", "MNIST/raw")
SPLITS = ("train", "t10k")
UNSIGNED_BYTE = 8


def read(path: Path, classes: tuple[str, ...] | None = None, splits: tuple[str, ...] = SPLITS) -> ImageSet:
    """The first of `splits` found in the folder `path` or torchvision's folders under it, as grey images.

    So the training split is used when it is there, else the test split; they are never mixed. Files may be
    gzipped. `classes` defaults to "0", "1", ... up to the largest label.
    Raises BenchError naming the file that is missing, damaged or does not match.
    """
    images_path, labels_path = _find(path, splits)
    images, labels = read_array(images_path, 3), read_array(labels_path, 1).astype(np.int64)
    if len(images) != len(labels):
        raise BenchError(f"{labels_path}: {len(labels)} labels, but {images_path.name} has {len(images)} images")
    classes = classes or tuple(str(label) for label in range(labels.max() + 1))
    check_labels(labels, len(classes), labels_path)
    return ImageSet(images[..., None], labels, classes)


def read_array(path: Path, dimensions: int) -> np.ndarray:
    """One idx file (gzipped when it ends in .gz) as uint8 with that many dimensions. Raises BenchError."""
    data = _contents(path)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise BenchError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions; replace the file")
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", dimensions, offset=4))
    expected, found = math.prod(shape), len(data) - start
    if found != expected:
        raise BenchError(f"{path}: {found} bytes after the header, expected {expected}; fetch the file again")
    if not found:
        raise BenchError(f"{path}: holds no data; fetch the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()  # a copy is writable


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise BenchError(f"{path}: damaged or truncated gzip; fetch the file again") from error


def _find(path: Path, splits: tuple[str, ...]) -> tuple[Path, Path]:
    for split in splits:
        for folder in FOLDERS:
            images, labels = (
                _one_of(path / folder / f"{split}-{name}") for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
            )
            if images and labels:
                return images, labels
            if images or labels:
                missing = "labels-idx1-ubyte" if images else "images-idx3-ubyte"
                raise BenchError(f"{path / folder / f'{split}-{missing}'}[.gz]: missing; put it beside its pair")
    raise BenchError(
        f"{path}: no {' or '.join(splits)} split here (expected {splits[0]}-images-idx3-ubyte[.gz] and "
        f"{splits[0]}-labels-idx1-ubyte[.gz], also under {', '.join(FOLDERS[1:])})"
    )


def _one_of(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
