"""The images of a preset, resized and split: the same for training, the held-out loss and the reference."""

from robuq_bench.config.preset import Preset
from robuq_bench.data import ImageSet, load, resized, split
from robuq_bench.errors import BenchError
from robuq_bench.seeds import seed


def images(preset: Preset) -> tuple[ImageSet, ImageSet]:
    """(training images, held-out images). Raises BenchError for a preset of latents, whose images are too many."""
    data = preset.data
    if preset.latents:
        raise BenchError("this preset trains on latents: its images are encoded once and not loaded as a set")
    return split(resized(load(data.source, data.path), data.size), data.held_out, seed("split"))
