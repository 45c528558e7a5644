"""The same image seeds under every method, as one PNG strip a row; names stay in HTML, not in pixels."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

PER_CLASS = 2
SHOWN = 10  # classes
SIDE = 48  # pixels an image is enlarged to, at least where a whole factor allows
GAP = 1  # transparent pixels of the source size around an image


def shown_classes(classes: int) -> range:
    """The classes with a column: all, or the first `SHOWN`."""
    return range(min(classes, SHOWN))


def strip(images: np.ndarray, labels: np.ndarray, classes: Sequence[int], side: int = SIDE) -> bytes:
    """PNG (RGBA) of the first `PER_CLASS` images of each class, side by side, nearest-neighbour enlarged.

    images: uint8 [N, H, W, 1 or 3]; labels: int64 [N]; side: pixels of an image, at least.
    A class with too few images leaves transparent places.
    """
    height, width = images.shape[1:3]
    tiles = [tile for label in classes for tile in _tiles(images[labels == label], height, width)]
    row = np.pad(np.concatenate(tiles, axis=1), ((GAP, GAP), (0, 0), (0, 0)))
    factor = max(1, -(-side // height))
    out = io.BytesIO()
    Image.fromarray(row.repeat(factor, axis=0).repeat(factor, axis=1)).save(out, "PNG", optimize=True)
    return out.getvalue()


def _tiles(images: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """`PER_CLASS` RGBA tiles with a transparent gap left and right."""
    tiles = []
    for k in range(PER_CLASS):
        tile = np.zeros((height, width + 2 * GAP, 4), np.uint8)
        if k < len(images):
            tile[:, GAP:-GAP, :3] = images[k]  # grey broadcasts to RGB
            tile[:, GAP:-GAP, 3] = 255
        tiles.append(tile)
    return tiles
