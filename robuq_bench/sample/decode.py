"""From what the model draws to images: pixels as they are, latents through the autoencoder of the preset."""

from robuq_bench.config.preset import Preset
from robuq_bench.models import vae
from robuq_bench.sample.generate import Decode
from robuq_bench.train.objective import to_images


def decoder(preset: Preset, device: str) -> Decode:
    """Raises BenchError when the autoencoder is missing or another than the preset's."""
    if preset.latents is None:
        return to_images
    autoencoder = vae.load(preset.latents, device)
    return lambda latents: to_images(autoencoder.decode(latents, preset.latents.batch))
