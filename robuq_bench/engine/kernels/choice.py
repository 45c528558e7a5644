"""Which tile multiplies a shape: what was measured on this GPU (see tune.py), else a rule of thumb.

Measurements lie in the cache folder of jit.py, one JSON file for each combination of GPU, driver, libraries and kernel
sources, so that none outlives what it was taken with. `tile_for` is what `gemm` asks; `explain` says where an answer
comes from.
"""

import ctypes
import functools
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.tiles import MmaTile, SingleTile, StreamTile, Tile
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json

KINDS = {kind.__name__: kind for kind in (MmaTile, StreamTile, SingleTile)}
LARGEST = 16384
MOST_STAGES = 9  # of all rings of a block together: deeper ones were slower


@dataclass(frozen=True)
class Shape:
    """A product: m tokens (a power of two, see `bucket`), n output and k (padded) input channels, activation bits."""

    m: int
    n: int
    k: int
    bits: int


@dataclass(frozen=True)
class Choice:
    """The fastest tile of a shape, the microseconds of all that were tried, and of the INT8 path where it runs.

    seconds: what choosing took, compilation included.
    """

    shape: Shape
    tile: Tile
    us: dict[str, float]
    seconds: float

    @property
    def int8_wins(self) -> bool:
        return self.us.get("int8", float("inf")) < self.us[str(self.tile)]


def bucket(m: int) -> int:
    """The power of two that stands for m tokens: 64, 128, ... 16384 (and more)."""
    return min(max(64, 1 << (m - 1).bit_length()), LARGEST)


@functools.cache
def limits(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, bytes of shared memory a block may take)."""
    facts = torch.cuda.get_device_properties(device)
    return facts.multi_processor_count, facts.shared_memory_per_block_optin


def tile_for(device: torch.device, m: int, n: int, k: int, bits: int) -> Tile:
    """The tile for m tokens, n output and k (padded) input channels. Raises BenchError when nothing fits."""
    known = choices(device).get(Shape(bucket(m), n, k, bits))
    return known.tile if known else default_tile(jit.architecture(device), m, n, k, bits, *limits(device))


def explain(device: torch.device, m: int, n: int, k: int, bits: int) -> str:
    """One line: the tile that `gemm` takes for a shape, and why."""
    known = choices(device).get(Shape(bucket(m), n, k, bits))
    tile = tile_for(device, m, n, k, bits)
    if not known:
        return f"{tile}, by rule; not measured on this GPU"
    second = sorted(known.us.items(), key=lambda item: item[1])[:2]
    return f"{tile}, measured: " + ", ".join(f"{name} {us:.1f} us" for name, us in second)


def candidates(arch: str, n: int, k: int, bits: int, shared: int) -> list[Tile]:
    """All tiles worth measuring for a layer that fit into `shared` bytes a block, no two the same."""
    units = k // 128
    tiles: list[Tile] = []
    if arch == "sm_90a":
        tiles += [_single(bn, n_split, units) for bn, n_split in ((64, 1), (128, 1), (128, 2), (256, 4))]
        tiles += [SingleTile(bn, 1, parts) for bn in (64, 128) for parts in (2, 3, 4) if units % parts == 0]
        tiles += [StreamTile(workers, side, 1, 1) for workers, side in ((3, 3), (3, 1), (2, 2), (2, 1), (4, 1))]
        tiles += [StreamTile(3, 1, 1, 1, turns=True)]
    tiles += [MmaTile(bn, 2, 1, 1) for bn in (128, 64)]
    fitted = [_fit(tile, units, bits, shared) for tile in tiles if tile.bn <= -(-n // 128) * 128]
    return [tile for tile in fitted if tile is not None and _possible(tile)]


def _single(bn: int, n_split: int, units: int) -> SingleTile:
    """A long K comes in pieces, so that the first are multiplied while the others are on their way."""
    return SingleTile(bn, n_split, 1, 4 if units >= 16 and units % 4 == 0 else 1)


def _possible(tile: Tile) -> bool:
    return not isinstance(tile, SingleTile) or tile.k_split == 1 or tile.bn // 32 <= tile.workers


def _fit(tile: Tile, units: int, bits: int, shared: int) -> Tile | None:
    """The tile with the longest chunks and then the deepest rings that fit; None when nothing does."""
    if isinstance(tile, SingleTile):
        return tile if tile.fits(units, bits, shared) else None
    rings = tile.workers // getattr(tile, "side", 1)
    for chunk in (c for c in range(min(9, units), 0, -1) if units % c == 0):
        for stages in (s for s in (4, 3, 2) if s == 2 or s * rings <= MOST_STAGES):
            wider = replace(tile, chunk=chunk, stages=stages)
            if wider.fits(units, bits, shared):
                return wider
    return None


def default_tile(arch: str, m: int, n: int, k: int, bits: int, processors: int, shared: int) -> Tile:
    """The rule of thumb, from the measurements in docs/engine.md.

    On Hopper: single tiles when all of them run at once, else streams, the more of them the larger the output.
    Raises BenchError when not even the narrowest tile's weights fit into shared memory.
    """
    units, order = k // 128, [MmaTile(128, 2, 1, 1), MmaTile(64, 2, 1, 1)]
    if arch == "sm_90a":
        tiles = -(-m // 64) * -(-n // 128) / processors  # of each multiprocessor
        two, three, wide = (StreamTile(workers, side, 1, 1) for workers, side in ((2, 1), (3, 1), (3, 3)))
        if bits == 2 and units <= 16:
            three = replace(three, turns=True)
        streams = [three] if units > 16 or tiles > 40 else [wide, three] if tiles > 15 else [two, three]
        single = [_single(64, 1, units), _single(128, 2, units)]
        at_once = [t for t in single if t.blocks(m, n, processors) <= processors * t.resident(units, bits, shared)]
        if single[0] in at_once and 4 * processors < single[0].blocks(m, n, processors) and m <= 4 * processors:
            at_once = single[1:]  # fc1 of few tokens: 5 % slower alone, 8 % faster when it begins fc2's branch
        order = [*at_once, *streams, *order]
    for tile in order:
        fitted = _fit(tile, units, bits, shared)
        if fitted is not None:
            return fitted
    raise BenchError(f"{k} input channels do not fit into {shared} bytes of shared memory")


@functools.cache
def choices(device: torch.device) -> dict[Shape, Choice]:
    """What has been measured on this GPU with these kernels."""
    try:
        rows = json.loads(path(device).read_text(encoding="utf-8"))["choices"]
        found = [_from_row(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: measured again when asked for
        return {}
    return {choice.shape: choice for choice in found}


def keep(device: torch.device, new: list[Choice]) -> None:
    """Add measurements to those on disk."""
    table = choices(device) | {choice.shape: choice for choice in new}
    write_json(path(device), {"key": key(device), "choices": [to_row(choice) for choice in table.values()]})
    choices.cache_clear()


def to_row(choice: Choice) -> dict[str, Any]:
    """A choice as JSON."""
    tile = {"kind": type(choice.tile).__name__} | asdict(choice.tile)
    return {"shape": asdict(choice.shape), "tile": tile, "us": choice.us, "seconds": choice.seconds}


def _from_row(row: dict[str, Any]) -> Choice:
    tile = dict(row["tile"])
    return Choice(Shape(**row["shape"]), KINDS[tile.pop("kind")](**tile), row["us"], row["seconds"])


def key(device: torch.device) -> dict[str, str]:
    """What a measurement depends on."""
    version = ctypes.c_int()
    jit.driver().cuDriverGetVersion(ctypes.byref(version))
    digest = hashlib.sha256(jit.read_source("gemm_common.cuh", "gemm_hopper.cuh", "gemm_mma.cu").encode())
    digest.update(jit.read_source("gemm_wgmma.cu", "gemm_tile.cu").encode())
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": str(version.value),
        "torch": torch.__version__,
        "nvrtc": jit.nvrtc_version(),
        "kernels": digest.hexdigest(),
    }


def path(device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(key(device), sort_keys=True).encode()).hexdigest()
    return jit.cache_folder() / f"choices-{digest[:16]}.json"
