"""One photo of any size and colour mode as a square of a given size, cut as ADM cuts (arXiv 2105.05233)."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from robuq_bench.data.decode import FORMATS
from robuq_bench.errors import BenchError


def central_square(path: Path, size: int) -> np.ndarray:
    """The photo at `path` as uint8 RGB [size, size, 3]: halved by boxes while it is twice as large, then bicubic so
    that the shorter side is `size`, then the centre. Grey, CMYK and palette images become RGB.

    Raises BenchError naming a file that does not decode.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow raises many types on damaged bytes
        raise BenchError(f"{path}: not a readable image (damaged or truncated?); replace the file") from error
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    wanted = (round(image.width * scale), round(image.height * scale))
    array = np.array(image.resize(wanted, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]
