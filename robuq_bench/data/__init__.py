"""Images in: load a source, fit it to a size, split off held-out images."""

from robuq_bench.data.images import ImageSet, resized, split
from robuq_bench.data.sources import SOURCES, load

__all__ = ["SOURCES", "ImageSet", "load", "resized", "split"]
