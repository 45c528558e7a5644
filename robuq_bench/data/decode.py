"""One image file to one array."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from robuq_bench.errors import BenchError

FORMATS = ("PNG", "WEBP", "BMP", "JPEG")  # others may start outside programs


def pixels(path: Path) -> np.ndarray:
    """The image at `path` as uint8 [H, W, C], C = 1 or 3. Raises BenchError naming the file.

    Only modes L and RGB are taken: dropping transparency or 16-bit depth must be the user's own choice.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except Exception as error:  # Pillow raises many types on damaged bytes
        raise BenchError(f"{path}: not a readable image (damaged or truncated?); replace the file") from error
    if image.mode not in ("L", "RGB"):
        raise BenchError(f"{path}: image mode {image.mode}; convert it to 8-bit grey or RGB")
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array
