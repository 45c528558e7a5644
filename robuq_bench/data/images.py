"""A labelled set of images, and the exact operations on it: fit to a size, split in two."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_arrays


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with one class each.

    images: uint8 [N, H, W, C], C = 1 (grey) or 3 (RGB), N >= 1; labels: int64 [N], indices into `classes`.
    Raises BenchError when a shape, a dtype or a label does not fit.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
            raise BenchError(f"images: expected uint8 [N > 0, H, W, 1 or 3], got {images.dtype} {list(images.shape)}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise BenchError(f"labels: expected int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}")
        check_labels(labels, len(self.classes), "labels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 over images and labels: equal sets have equal digests, whatever file they came from."""
        return sha256_arrays(self.images, self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """The images at `indices`, in that order, with the same classes. Raises BenchError for none."""
        indices = np.asarray(indices)
        if not indices.size:
            raise BenchError("subset: no image is left; choose at least one")
        return ImageSet(self.images[indices], self.labels[indices], self.classes)


def check_labels(labels: np.ndarray, classes: int, where: object) -> None:
    """Raises BenchError, beginning with `where`, unless each of `labels` is in 0 ... `classes` - 1."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        raise BenchError(f"{where}: label {outside[0]} is outside 0 ... {classes - 1} ({classes} classes)")


def resized(image_set: ImageSet, size: int) -> ImageSet:
    """`image_set` at `size` x `size` pixels; the same object when it has that size already.

    Each new pixel is the mean over its area, computed in whole numbers, halves rounded up. Where `size` does
    not divide the side, grey images first get a black border, as even as possible, up to the next multiple
    (28 becomes 32 for 16); RGB photos, which have no background to extend, share border pixels by area.
    Raises BenchError for images that are not square, and for enlarging.
    """
    height, width, channels = image_set.images.shape[1:]
    if height != width:
        raise BenchError(f"size {size}: the images are {width}x{height}, not square; crop them first")
    if not 1 <= size <= height:
        raise BenchError(f"size {size}: the images are {height}x{height}; choose a size from 1 to {height}")
    if size == height:
        return image_set
    images = _padded(image_set.images, -height % size) if channels == 1 else image_set.images
    return ImageSet(_averaged(images, size), image_set.labels, image_set.classes)


def _padded(images: np.ndarray, extra: int) -> np.ndarray:
    border = (extra // 2, extra - extra // 2)
    return np.pad(images, ((0, 0), border, border, (0, 0))) if extra else images


def _averaged(images: np.ndarray, size: int) -> np.ndarray:
    n, side, _, channels = images.shape
    shares, area = _shares(side, size), side * side
    small = np.empty((n, size, size, channels), np.uint8)
    for old, new in zip(images, small, strict=True):
        # Whole numbers far below 2^53, so that float64 products (fast) are exact.
        sums = (shares @ old.transpose(2, 0, 1) @ shares.T).astype(np.int64)
        new[:] = ((sums + area // 2) // area).transpose(1, 2, 0)
    return small


def _shares(side: int, size: int) -> np.ndarray:
    """[size, side]: how much of each old pixel lies in each new one, in 1 / size; every row sums to side."""
    old, new = np.arange(side) * size, np.arange(size)[:, None] * side
    return np.clip(np.minimum(old + size, new + side) - np.maximum(old, new), 0, None).astype(np.float64)


def split(image_set: ImageSet, held_out: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split into (train, held out) as `split_indices` does. Raises BenchError unless 1 <= held_out < N."""
    train, kept = split_indices(image_set.labels, held_out, seed)
    return image_set.subset(train), image_set.subset(kept)


def split_indices(labels: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices into int64 `labels` [N], sorted, of the images to (train on, hold out), `held_out` in the second.

    Each class gives in proportion to its size: where classes are equally large, their counts differ by at
    most one. The choice depends on the labels, `held_out` and `seed` (>= 0, PCG64) alone.
    Raises BenchError unless 1 <= held_out < N.
    """
    n = len(labels)
    if not 1 <= held_out < n:
        raise BenchError(f"held_out {held_out}: choose 1 to {n - 1}, for there are {n} images")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    labels = labels[order]
    # Spread each class evenly over [0, 1), shuffled: every prefix is then stratified (Webster's method).
    place = np.empty(n)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = order[np.argsort(place, kind="stable")]
    return np.sort(order[held_out:]), np.sort(order[:held_out])
