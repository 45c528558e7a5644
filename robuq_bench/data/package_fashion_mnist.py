"""Rebuild `packaged/fashion_mnist_10k*` from the idx files of Debian's package `dataset-fashion-mnist`.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb unpacked
    python -m robuq_bench.data.package_fashion_mnist --idx unpacked/usr/share/datasets/fashion-mnist

The rebuilt files decode to the same arrays, which the digest shows; their bytes may differ between encoders.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from robuq_bench.data import fashion_mnist as fm
from robuq_bench.data import idx
from robuq_bench.data.images import ImageSet
from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, write_json, write_text

SOURCE = {
    "name": "Fashion-MNIST, test split",
    "package": "dataset-fashion-mnist (Debian)",
    "version": "0.0~git20200523.55506a9-1",
    "files": ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"],
    "licence": "MIT, see LICENSE.fashion-mnist",
}
REBUILD = "python -m robuq_bench.data.package_fashion_mnist --idx FOLDER"


def package(source: Path, target: Path = fm.PACKAGED) -> str:
    """Write mosaic, labels and facts of the test split in `source` into `target`; return the digest.

    Raises BenchError when `source` holds no such split, or the written files do not read back exactly.
    """
    image_set = idx.read(source, fm.CLASSES, splits=("t10k",))
    expected = (fm.TILES**2, fm.SIDE, fm.SIDE, 1)
    if image_set.images.shape != expected:
        raise BenchError(
            f"{source}: not Fashion-MNIST's test split: images {list(image_set.images.shape)}, "
            f"expected {list(expected)}; give the folder with the original files"
        )
    with atomic(target / fm.MOSAIC) as temporary:
        mosaic = fm.to_mosaic(image_set.images)[:, :, 0]
        Image.fromarray(mosaic).save(temporary, lossless=True, quality=90, method=6)
    write_text(target / fm.LABELS, _lines(image_set))
    write_json(target / fm.FACTS, _facts(image_set))
    return fm.read_packaged(target).digest


def _lines(image_set: ImageSet) -> str:
    """One digit an image, one line a row of the mosaic."""
    return "".join("".join(map(str, row)) + "\n" for row in image_set.labels.reshape(fm.TILES, fm.TILES))


def _facts(image_set: ImageSet) -> dict[str, object]:
    n, height, width, channels = image_set.images.shape
    return {
        "sha256": image_set.digest,
        "n": n,
        "size": [height, width, channels],
        "classes": list(image_set.classes),
        "layout": f"{fm.TILES} x {fm.TILES} tiles, row by row, lossless",
        "source": SOURCE,
        "rebuild": REBUILD,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="package_fashion_mnist", description=__doc__.splitlines()[0])
    parser.add_argument("--idx", type=Path, required=True, help="folder with the t10k idx files")
    parser.add_argument("--out", type=Path, default=fm.PACKAGED, help="folder to write (default: the package's own)")
    given = parser.parse_args(arguments)
    try:
        print(f"{given.out}: written, sha256 {package(given.idx, given.out)}")
    except BenchError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
