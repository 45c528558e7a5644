"""Images into a cache of latents, shard by shard: cut short, it goes on with the first shard that is missing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench.data.crop import central_square
from robuq_bench.data.folder import Listing
from robuq_bench.data.latents import FORMAT, INDEX, check_scale, shard_name
from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, read_json, sha256_arrays, sha256_file, write_json
from robuq_bench.progress import LOG

Encode = Callable[[np.ndarray, Sequence[int]], np.ndarray]
"""(uint8 [B, size, size, 3], a number for each that its random draw follows) -> float [B, C, h, w], unscaled."""


@dataclass(frozen=True)
class Plan:
    """What a cache is made of. `vae`: digest of the autoencoder; `latent`: (C, h, w); `scale` is only checked here."""

    listing: Listing
    size: int
    latent: tuple[int, int, int]
    flip: bool
    shard: int
    batch: int
    vae: str
    scale: float

    @property
    def shards(self) -> int:
        return -(-len(self.listing.files) // self.shard)

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 if self.flip else 1, *self.latent)

    def files(self, number: int) -> tuple[Path, ...]:
        return self.listing.files[number * self.shard : (number + 1) * self.shard]

    def stamp(self, number: int) -> str:
        """One string that is equal exactly when shard `number` would be made of the same things."""
        try:
            files = [(file.parent.name, file.name, file.stat().st_size) for file in self.files(number)]
        except OSError as error:
            raise BenchError(f"{error.filename}: cannot be read ({error.strerror})") from error
        facts = json.dumps([FORMAT, self.size, self.latent, self.flip, self.vae, files])
        return sha256_arrays(np.frombuffer(facts.encode(), np.uint8))


def write_shard(folder: Path, number: int, plan: Plan, encode: Encode, advance: Callable[[int], None]) -> None:
    """Encode shard `number` unless it is there. Raises BenchError for an image that does not decode and for a latent
    scale that does not fit; shards written before stay."""
    path, stamp = folder / shard_name(number), plan.stamp(number)
    files = plan.files(number)
    if is_written(path, stamp):
        LOG.info("%s: already there", path)
        advance(len(files))
        return
    shard = np.empty((len(files), *plan.shape), np.float16)
    for start in range(0, len(files), plan.batch):
        images = np.stack([central_square(file, plan.size) for file in files[start : start + plan.batch]])
        for orientation in range(plan.shape[0]):
            mirrored = images[:, :, ::-1] if orientation else images
            first = 2 * (number * plan.shard + start) + orientation
            draws = range(first, first + 2 * len(images), 2)
            with np.errstate(over="ignore"):  # found below, and said in one line
                shard[start : start + len(images), orientation] = encode(mirrored, draws)
        advance(len(images))
    spread = _checked(shard, plan, path)
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, shard)
    record = {"stamp": stamp, "n": len(files), "sha256": sha256_file(path), "bytes": path.stat().st_size}
    write_json(path.with_suffix(".json"), record | {"spread": spread})


def is_written(path: Path, stamp: str) -> bool:
    """Whether the shard at `path` is whole and of `stamp`; its size is looked at, its hash by `Cache.verify`."""
    record = path.with_suffix(".json")
    if not (path.is_file() and record.is_file()):
        return False
    found = read_json(record)
    return found.get("stamp") == stamp and found.get("bytes") == path.stat().st_size


def finish(folder: Path, plan: Plan, facts: dict[str, Any]) -> None:
    """Write the index of a cache whose shards are all there. `facts`: provenance and what else is worth keeping.

    Raises BenchError when the scale does not fit them, which were perhaps encoded when it was another one.
    """
    records = [read_json((folder / shard_name(number)).with_suffix(".json")) for number in range(plan.shards)]
    spread = float(np.mean([record["spread"] for record in records]))
    check_scale(folder, spread, plan.scale)
    counts = np.bincount(plan.listing.labels, minlength=len(plan.listing.classes))
    index = {
        "format": FORMAT,
        "n": len(plan.listing.files),
        "shape": list(plan.shape),
        "shard": plan.shard,
        "classes": list(plan.listing.classes),
        "labels": counts.tolist(),  # a listing goes class by class
        "shards": [{key: record[key] for key in ("n", "sha256")} for record in records],
        "vae": plan.vae,
        "size": plan.size,
        "spread": spread,
        "data": [record["stamp"] for record in records],
    }
    write_json(folder / INDEX, index | facts)


def _checked(shard: np.ndarray, plan: Plan, path: Path) -> float:
    """Standard deviation of the latents, unscaled. Raises BenchError when they are not finite or the scale is wrong."""
    if not np.isfinite(shard).all():
        raise BenchError(f"{path}: the autoencoder gave values that float16 cannot hold; is it the right one?")
    spread = float(shard.astype(np.float32).std())
    check_scale(path, spread, plan.scale)
    return spread
