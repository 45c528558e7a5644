"""Images of a long sampling run as they are drawn: one array on disk that all processes write to, lane by lane.

A run that was cut goes on with the lanes that are missing; memory holds one lane, whatever the number of images.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, write_json
from robuq_bench.train.distributed import World

Draw = Callable[[range], np.ndarray]
"""Image seeds of a lane -> uint8 [lane, H, W, C]."""


class Kept:
    """The array and the marks in `folder`. `stamp` says of which run; a folder of another run is started afresh."""

    def __init__(self, folder: Path, stamp: str, shape: tuple[int, int, int, int], lane: int, world: World):
        self.folder, self.shape, self.lane, self.world = folder, shape, lane, world
        self.lanes = range(-(-shape[0] // lane))
        self.array = folder / "images.npy"
        if world.leads:
            self._begin(stamp)
        world.wait()

    def _begin(self, stamp: str) -> None:
        note = self.folder / "run.json"
        if not (note.exists() and self.array.exists() and read_json(note) == stamp):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            needed, free = int(np.prod(self.shape)), shutil.disk_usage(self.folder).free
            if free < needed:
                raise BenchError(
                    f"{self.folder}: {self.shape[0]} images need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
                )
            np.lib.format.open_memmap(self.array, "w+", np.uint8, self.shape).flush()
            write_json(note, stamp)

    def images(self) -> np.ndarray:
        """uint8 [N, H, W, C], on disk."""
        return np.load(self.array, mmap_mode="r")

    def draw(self, draw: Draw, advance: Callable[[int], None] = lambda count: None) -> None:
        """Draw this process's share of the lanes that are missing, then wait for the others."""
        images = np.load(self.array, mmap_mode="r+")
        for lane in self.lanes[self.world.rank :: self.world.size]:
            first, mark = lane * self.lane, self.folder / f"lane{lane:06d}"
            seeds = range(first, first + self.lane)  # always whole: an image never depends on how many are asked for
            count = min(self.lane, len(images) - first)
            if not mark.exists():
                images[first : first + count] = draw(seeds)[:count]
                images.flush()
                mark.touch()
            advance(count)
        self.world.wait()

    def clear(self) -> None:
        self.world.wait()
        if self.world.leads:
            shutil.rmtree(self.folder, ignore_errors=True)
