"""The real images, reduced to what the scores need, kept as a file."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, existing, sha256_arrays
from robuq_bench.metrics.features import Features, Source
from robuq_bench.metrics.frechet import Moments, MomentsAccumulator

FORMAT = "robuq_bench reference 1"
KEEP = 10_000  # as many as ADM's reference files hold for precision and recall


@dataclass(frozen=True, eq=False)
class Reference:
    """pooled, spatial: moments of all real images; kept: pooled features float32 [k, d] of k random ones.

    data: digest of the images, or of ADM's file, or "" when not given.
    """

    pooled: Moments
    spatial: Moments
    kept: np.ndarray
    source: Source
    data: str = ""

    @property
    def n(self) -> int | None:
        """Images behind the moments; None: ADM's files do not say."""
        return self.pooled.n


@dataclass(frozen=True, eq=False)
class Reduced:
    """reference: the real images; held_out, against: real images and what they are scored against, for the floor."""

    reference: Reference
    held_out: Features
    against: Reference


def build_reference(chunks: Iterable[Features], keep: int = KEEP, seed: int = 0, data: str = "") -> Reference:
    """Reduce the features of the real images, one or more chunks, in constant memory.

    Each image draws a random priority and the `keep` lowest stay, lowest first: a uniform sample, as are its
    first k rows for any k; it depends on `seed` and the order of the images, not on the chunks.
    Raises BenchError for no chunk, chunks of several extractors, non-finite features, and too few images.
    """
    pooled, spatial = MomentsAccumulator(), MomentsAccumulator()
    random = np.random.default_rng(seed)
    source, kept, priorities = None, np.empty((0, 0), np.float32), np.empty(0)
    for chunk in chunks:
        source = source or chunk.source
        check_source(chunk.source, source, "reference")
        pooled.add(chunk.pooled)
        spatial.add(chunk.spatial)
        kept = np.concatenate([kept, chunk.pooled]) if kept.size else chunk.pooled
        priorities = np.concatenate([priorities, random.random(len(chunk))])
        lowest = np.argsort(priorities, kind="stable")[:keep]
        kept, priorities = kept[lowest], priorities[lowest]
    if source is None:
        raise BenchError("reference: no images")
    return Reference(pooled.moments(), spatial.moments(), kept, source, data)


def reference_file(folder: Path, extractor: str) -> Path:
    """Where the reference of an extractor lies in a folder of `robuq-bench reference`."""
    return folder / f"{extractor}.safetensors"


def save_reference(path: str | Path, reference: Reference) -> None:
    """Write `reference` as one safetensors file, whole or not at all."""
    tensors = _tensors(reference)
    metadata = {
        "format": FORMAT,
        "data": reference.data,
        "sha256": _digest(tensors),
        **asdict(reference.source),
    }
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_reference(path: str | Path, source: Source | None = None, data: str | None = None) -> Reference:
    """Read a reference; `source`, `data`: what it must have been made with, when given.

    Raises BenchError when the file is missing, truncated, altered, or was made otherwise.
    """
    path = existing(path, "reference")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BenchError(f"{path}: damaged ({error}); delete it and run the command again") from error
    if metadata.get("format") != FORMAT or metadata.get("sha256") != _digest(tensors):
        raise BenchError(f"{path}: not a reference, or altered; delete it and run the command again")
    reference = _reference(tensors, metadata)
    if source:
        check_source(reference.source, source, str(path))
    if data is not None and reference.data != data:
        raise BenchError(f"{path}: made from other images; delete it and run the command again")
    return reference


def check_source(given: Source, wanted: Source, where: str) -> None:
    """Raises BenchError naming the first thing in which two feature sources differ."""
    for field in fields(Source):
        mine, other = getattr(given, field.name), getattr(wanted, field.name)
        if mine != other:
            raise BenchError(f"{where}: made by another extractor ({field.name} '{mine}', wanted '{other}')")


def _tensors(reference: Reference) -> dict[str, np.ndarray]:
    return {
        "kept": np.ascontiguousarray(reference.kept),
        "n": np.array([reference.n or 0]),
        "pooled.covariance": reference.pooled.covariance,
        "pooled.mean": reference.pooled.mean,
        "spatial.covariance": reference.spatial.covariance,
        "spatial.mean": reference.spatial.mean,
    }


def _reference(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> Reference:
    n = int(tensors["n"][0]) or None
    pooled, spatial = (
        Moments(tensors[f"{kind}.mean"], tensors[f"{kind}.covariance"], n) for kind in ("pooled", "spatial")
    )
    source = Source(**{field.name: metadata[field.name] for field in fields(Source)})
    return Reference(pooled, spatial, tensors["kept"], source, metadata["data"])


def _digest(tensors: dict[str, np.ndarray]) -> str:
    return sha256_arrays(*(tensors[key] for key in sorted(tensors)))
