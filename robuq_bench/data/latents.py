"""Encoded images on disk: memory-mapped shards with their hashes, written once, read by everything after.

A cache is a folder with `index.json`, and for each shard `shard00000.npy`, float16 [images, orientations, C, h, w]
(unscaled; orientation 1 is the mirrored photo, encoded), and `shard00000.json`, its record.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, sha256_arrays, sha256_file

FORMAT = "robuq_bench latents 2"
INDEX = "index.json"
WHAT = ("n", "shape", "shard", "classes", "labels", "shards", "vae", "size", "spread", "data")
AGAIN = "delete it and run `robuq-bench latents` again: whole shards are kept"
SPREAD = (0.5, 2.0)
"""Standard deviation that scaled latents of natural images may have; about 1 is what the scale is for."""


def check_scale(where: Path, spread: float, scale: float) -> None:
    """Raises BenchError when latents of the standard deviation `spread`, unscaled, are not to be scaled by `scale`."""
    if not SPREAD[0] <= spread * scale <= SPREAD[1]:
        raise BenchError(
            f"{where}: with latents.scale {scale:g} the latents vary by {spread * scale:.3g}, not by about 1; "
            f"{1 / spread:.3g} would fit this autoencoder"
        )


def shard_name(number: int) -> str:
    return f"shard{number:05d}.npy"


@dataclass(frozen=True)
class Cache:
    """The latents in `folder`. `index`: what `index.json` says (WHAT); `labels` int64 [N]."""

    folder: Path
    index: dict[str, Any]

    def __len__(self) -> int:
        return self.index["n"]

    @property
    def orientations(self) -> int:
        """1, or 2: as it is and mirrored."""
        return self.index["shape"][0]

    @property
    def latent(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return tuple(self.index["shape"][1:])

    @cached_property
    def labels(self) -> np.ndarray:
        counts = self.index["labels"]
        return np.repeat(np.arange(len(counts)), counts)

    @cached_property
    def digest(self) -> str:
        """Of the contents of all shards and their labels, by their recorded hashes."""
        text = "\n".join(shard["sha256"] for shard in self.index["shards"])
        return sha256_arrays(np.frombuffer(text.encode(), np.uint8), self.labels)

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [self._mapped(number, shard["n"]) for number, shard in enumerate(self.index["shards"])]

    def _mapped(self, number: int, n: int) -> np.ndarray:
        path = self.folder / shard_name(number)
        try:
            shard = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise BenchError(f"{path}: no such shard; run `robuq-bench latents` again") from error
        except (ValueError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise BenchError(f"{path}: truncated or damaged shard ({reason}); {AGAIN}") from error
        wanted = (n, *self.index["shape"])
        if shard.dtype != np.float16 or shard.shape != wanted:
            raise BenchError(f"{path}: {shard.dtype} {list(shard.shape)}, expected float16 {list(wanted)}; {AGAIN}")
        return shard

    def take(self, images: np.ndarray, orientations: np.ndarray) -> np.ndarray:
        """float16 [B, C, h, w], unscaled: the given orientation of the given images, int64 [B] each."""
        found = np.empty((len(images), *self.latent), np.float16)
        numbers, places = np.divmod(images, self.index["shard"])
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self._shards[number][places[here], orientations[here]]
        return found

    def verify(self) -> None:
        """Read everything and compare hashes. Raises BenchError naming the first shard that differs."""
        recorded = [shard["sha256"] for shard in self.index["shards"]]
        paths = [self.folder / shard_name(number) for number in range(len(recorded))]
        with ThreadPoolExecutor() as pool:
            for path, found, expected in zip(paths, pool.map(sha256_file, paths), recorded, strict=True):
                if found != expected:
                    raise BenchError(f"{path}: damaged shard (its SHA-256 is not the recorded one); {AGAIN}")


def open_cache(folder: Path) -> Cache:
    """The cache in `folder`, with every shard there and of the right size. Raises BenchError otherwise."""
    path = folder / INDEX
    if not path.is_file():
        raise BenchError(f"{folder}: no finished latents here; encode the images with `robuq-bench latents`")
    index = read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT or any(key not in index for key in WHAT):
        raise BenchError(
            f"{path}: not the index of a cache of this version; delete the folder and run `robuq-bench latents` again"
        )
    cache = Cache(folder, index)
    if sum(shard["n"] for shard in index["shards"]) != len(cache) or len(cache.labels) != len(cache):
        raise BenchError(f"{path}: its counts do not add up; {AGAIN}")
    assert cache._shards is not None  # maps them all: a truncated one is found now, not in mid-training
    return cache
