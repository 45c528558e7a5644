"""Bytes that a preset leaves on disk, by sort."""

from robuq_bench.config.preset import Preset
from robuq_bench.train.latents_stage import listing

WIDTH_SQUARES = 18.4
"""Parameters of a DiT in units of depth x width²: 12 in a block's products, 6 in its modulation, the rest around."""
CHECKPOINT, STATES, PACKED = 4, 2 * 16, 0.3
"""Bytes a parameter: a checkpoint; two resumable states (weights, AdamW, average) of one run; a packed file."""


def disk(preset: Preset) -> dict[str, float]:
    """{what: bytes} of results, resumable state and latents, when all rows have run."""
    runs = sum(len(preset.seeds_of(row)) for row in preset.rows)
    parameters = WIDTH_SQUARES * preset.model.depth * preset.model.width**2
    channels = 3 if preset.latents else 1
    needed = {
        "checkpoints": runs * parameters * (CHECKPOINT + PACKED),
        "state": parameters * STATES,
        "images": (runs + 1) * preset.sample.n * channels * preset.data.size**2,
    }
    if preset.latents:
        each = (2 if preset.latents.flip else 1) * preset.latents.channels * preset.side**2 * 2
        needed["latents"] = len(listing(preset).files) * each
    return needed


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
