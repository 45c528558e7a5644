"""ADM's files (Dhariwal & Nichol 2021): reference moments with real images, and samples for ADM's own evaluator.

A reference .npz holds mu, sigma of `pool_3`, mu_s, sigma_s of the first 7 channels of `mixed_6/conv` (17×17, NHWC
order), all float64, and in arr_0 real images, uint8 [N, H, W, 3]: those that precision and recall are measured against.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, existing, sha256_file
from robuq_bench.metrics.features import Features
from robuq_bench.metrics.frechet import Moments
from robuq_bench.metrics.reference import KEEP, Reduced, Reference
from robuq_bench.sample import npz

MOMENTS = ("mu", "sigma", "mu_s", "sigma_s")
IMAGES = "arr_0"
CHUNK = 512  # images whose features are computed at a time
SYMMETRIC = 1e-6  # of the largest entry: how far a stored covariance may be from its transpose


class AdmFile:
    """An ADM reference .npz, its moments read and checked, its images left on disk.

    Raises BenchError when it is missing or truncated, holds no moments or no images, or damaged ones.
    """

    def __init__(self, path: str | Path):
        self.path = existing(path, "reference")
        absent = [name for name in (*MOMENTS, IMAGES) if name not in npz.names(self.path)]
        if absent:
            raise BenchError(f"{self.path}: {_lack(absent)}")
        self.pooled = self._moments("mu", "sigma")
        self.spatial = self._moments("mu_s", "sigma_s")
        self.images = npz.open_array(self.path, IMAGES)[:KEEP]
        self.digest = sha256_file(self.path)

    def __len__(self) -> int:
        return len(self.images)

    def reduced(self, features: Callable[[np.ndarray], Features]) -> Reduced:
        """The file as a reference for the extractor behind `features`, and what the floor is made of.

        The floor: the second half of the file's images, scored against its moments and the first half. It is real
        against real, and a little too good, because the moments are of these images too.
        Raises BenchError when the extractor's features have other dimensions than the moments.
        """
        chunks = [features(images) for images in self._chunks()]
        for moments, name in ((self.pooled, "pooled"), (self.spatial, "spatial")):
            wanted = getattr(chunks[0], name).shape[1]
            if len(moments.mean) != wanted:
                raise BenchError(
                    f"{self.path}: {name} moments of {len(moments.mean)} dimensions, but {chunks[0].source.name} gives "
                    f"{wanted}; ADM's files are for the extractor Inception"
                )
        kept = np.concatenate([chunk.pooled for chunk in chunks])
        source, half = chunks[0].source, len(kept) // 2
        whole, first_half = (
            Reference(self.pooled, self.spatial, rows, source, self.digest) for rows in (kept, kept[:half])
        )
        return Reduced(whole, _joined(chunks)[half:], first_half)

    def _chunks(self) -> Iterator[np.ndarray]:
        edges = [*range(0, len(self.images), CHUNK), len(self.images)]
        return (self.images[start:stop] for start, stop in pairwise(edges))

    def _moments(self, mean_name: str, covariance_name: str) -> Moments:
        mean, covariance = (
            np.asarray(npz.open_array(self.path, name)[:], dtype=np.float64) for name in (mean_name, covariance_name)
        )
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise BenchError(
                f"{self.path}: {mean_name} {list(mean.shape)} and {covariance_name} {list(covariance.shape)} are no "
                "mean and covariance"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise BenchError(f"{self.path}: {mean_name} or {covariance_name} is not finite; the file is damaged")
        if np.abs(covariance - covariance.T).max() > SYMMETRIC * np.abs(covariance).max():
            raise BenchError(f"{self.path}: {covariance_name} is not symmetric; the file is damaged")
        return Moments(mean, covariance, None)


def _lack(absent: list[str]) -> str:
    if absent == [IMAGES]:
        return f"holds no images ({IMAGES}), against which precision, recall and KID are measured"
    return (
        f"holds no moments ({', '.join(absent)} missing), so it is no ADM reference; take one such as "
        "VIRTUAL_imagenet256_labeled.npz"
    )


def _joined(chunks: list[Features]) -> Features:
    arrays = [[getattr(chunk, name) for chunk in chunks] for name in ("pooled", "spatial", "probabilities")]
    return Features(*map(np.concatenate, arrays), chunks[0].source)


def save_for_adm(path: str | Path, images: np.ndarray) -> None:
    """Write `images`, uint8 [N, H, W, 1 or 3], as ADM's evaluator.py reads samples: one array, arr_0, RGB."""
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, arr_0=np.broadcast_to(images, (*images.shape[:3], 3)))
