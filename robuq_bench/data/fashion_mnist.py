"""Fashion-MNIST: the packaged 10 000 test images, or the user's own idx files.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747. The copy in `packaged/` is under the MIT
licence beside it and is made by `python -m robuq_bench.data.package_fashion_mnist`.
"""

from pathlib import Path

import numpy as np

from robuq_bench.data import idx
from robuq_bench.data.decode import pixels
from robuq_bench.data.images import ImageSet
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json

PACKAGED = Path(__file__).parent / "packaged"
MOSAIC, LABELS, FACTS = (f"fashion_mnist_10k{end}" for end in (".webp", "_labels.txt", ".json"))
SIDE, TILES = 28, 100  # pixels of an image; images in a row and in a column of the mosaic
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read(path: Path | None) -> ImageSet:
    """Grey 28x28 images: the packaged ones when `path` is None, else that folder's idx files (`idx.read`)."""
    return read_packaged() if path is None else idx.read(path, CLASSES)


def read_packaged(folder: Path = PACKAGED) -> ImageSet:
    """The 10 000 test images, in order. Raises BenchError when they are not the ones that were packaged."""
    mosaic, text = pixels(folder / MOSAIC), (folder / LABELS).read_bytes()
    digits = np.frombuffer(b"".join(text.split()), np.uint8)
    if mosaic.shape[:2] != (TILES * SIDE, TILES * SIDE) or len(digits) != TILES * TILES:
        raise _damaged(folder)
    images = from_mosaic(mosaic[:, :, :1])  # lossless WebP has no grey mode: the three channels are equal
    labels = digits.astype(np.int64) - ord("0")
    if not ((labels >= 0) & (labels < len(CLASSES))).all():
        raise _damaged(folder)
    image_set = ImageSet(images, labels, CLASSES)
    facts = read_json(folder / FACTS)
    if not isinstance(facts, dict) or facts.get("sha256") != image_set.digest:
        raise _damaged(folder)
    return image_set


def _damaged(folder: Path) -> BenchError:
    return BenchError(
        f"{folder / MOSAIC} or {LABELS}: not the packaged images (SHA-256 differs from {FACTS}); reinstall robuq-bench"
    )


def to_mosaic(images: np.ndarray) -> np.ndarray:
    """[10000, 28, 28, 1] to [2800, 2800, 1], row by row."""
    return images.reshape(TILES, TILES, SIDE, SIDE, 1).swapaxes(1, 2).reshape(TILES * SIDE, TILES * SIDE, 1)


def from_mosaic(mosaic: np.ndarray) -> np.ndarray:
    """The inverse of `to_mosaic`."""
    return mosaic.reshape(TILES, SIDE, TILES, SIDE, 1).swapaxes(1, 2).reshape(TILES * TILES, SIDE, SIDE, 1)
