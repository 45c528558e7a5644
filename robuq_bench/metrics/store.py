"""Features on disk: no number of images fills the memory, several processes share the work, and a cut run goes on.

The images are cut into chunks of a fixed size; each chunk's features are one file, in a folder named by what they are
of: digest of the images, of the network, and its protocol. Because batches are fixed too, a chunk holds the same bits
whichever process made it: shards merge exactly.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic
from robuq_bench.metrics.arrays import Rows
from robuq_bench.metrics.features import Extractor, Features, Source
from robuq_bench.sample import npz
from robuq_bench.train.distributed import ALONE, World

CHUNK = 2048  # images a file
ARRAYS = ("pooled", "spatial", "probabilities")


class Store:
    """Features of one set of images by one extractor, in the folder `root`.

    images: uint8 [N, H, W, C], or anything of that shape that gives slices. digest: of the file they are in.
    """

    def __init__(self, root: Path, extractor: Extractor, images: np.ndarray, digest: str):
        self.extractor, self.images = extractor, images
        self.source: Source = extractor.source
        key = json.dumps([digest, asdict(self.source), CHUNK])
        self.folder = root / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.chunks = range(-(-len(images) // CHUNK))

    def extract(self, world: World = ALONE, progress: Callable[[int], None] = lambda done: None) -> None:
        """Compute this process's share of the chunks that are not there yet; `progress` gets how many images each adds.

        Raises BenchError for what is no image.
        """
        for chunk in self.chunks[world.rank :: world.size]:
            images = self.images[chunk * CHUNK : (chunk + 1) * CHUNK]
            if not self._whole(chunk):
                self._write(chunk, self.extractor.features(np.asarray(images)))
            progress(len(images))

    def features(self) -> Features:
        """All features, left where they lie. Raises BenchError when some process has not delivered."""
        missing = [chunk for chunk in self.chunks if not self._path(chunk).exists()]
        if missing:
            raise BenchError(
                f"{self.folder}: features of {len(missing)} of {len(self.chunks)} chunks are missing (the first is "
                f"{missing[0]}); run the same command again"
            )
        parts = [self._read(chunk) for chunk in self.chunks]
        return Features(*(Rows([part[name] for part in parts]) for name in ARRAYS), self.source)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.npz"

    def _whole(self, chunk: int) -> bool:
        """Whether the chunk is there, undamaged: what a crash or a full disk left is made again."""
        try:
            with np.load(self._path(chunk), allow_pickle=False) as file:
                return {len(file[name]) for name in ARRAYS} == {self._size(chunk)}  # reading checks the CRC
        except npz.DAMAGED:
            return False

    def _write(self, chunk: int, features: Features) -> None:
        with atomic(self._path(chunk)) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **{name: getattr(features, name) for name in ARRAYS})

    def _read(self, chunk: int) -> dict[str, np.ndarray]:
        arrays = {name: npz.open_array(self._path(chunk), name) for name in ARRAYS}
        if {len(array) for array in arrays.values()} != {self._size(chunk)}:
            raise BenchError(f"{self._path(chunk)}: not the features of {self._size(chunk)} images; delete it")
        return arrays

    def _size(self, chunk: int) -> int:
        """Images in the chunk."""
        return min(CHUNK, len(self.images) - chunk * CHUNK)
