"""The autoencoder between images and latents: diffusers' AutoencoderKL, from a folder, never trained here."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from robuq_bench.config.external import Latents
from robuq_bench.errors import BenchError
from robuq_bench.models import folders


@dataclass(frozen=True)
class Autoencoder:
    """`model` on `device`. `digest`: SHA-256 of its tensors; `scale`: what latents are multiplied by for training."""

    model: AutoencoderKL
    scale: float
    digest: str
    device: str

    @torch.inference_mode()
    def encode(self, signal: Tensor, noise: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [-1, 1] -> unscaled latents [B, C, h, w]: one draw of the posterior, from `noise`."""
        posterior = self.model.encode(signal.to(self.device)).latent_dist
        return (posterior.mean + posterior.std * noise.to(self.device)).cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor, batch: int = 16) -> Tensor:
        """Scaled latents [B, C, h, w] -> float32 [B, 3, H, W], about -1 ... 1, on the CPU; `batch` at a time."""
        parts = latents.to(self.device, torch.float32).split(batch)
        return torch.cat([self.model.decode(part / self.scale).sample.cpu() for part in parts])


def load(source: Latents, device: str = "cpu") -> Autoencoder:
    """Raises BenchError when the folder holds another autoencoder than the preset says, or its own scale differs."""
    folder = folders.locate(source.vae, "vae")
    check_configuration(source)
    model = folders.load(AutoencoderKL, folder)
    found = folders.digest(model.state_dict())
    folders.check_digest(found, source.sha256, folder)
    return Autoencoder(model.to(device).requires_grad_(False), source.scale, found, device)


def check_configuration(source: Latents) -> None:
    """Raises BenchError naming what in the folder's configuration is not what the preset says."""
    folder = folders.locate(source.vae, "vae")
    found = folders.configuration(folder)
    blocks = found.get("block_out_channels")
    factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None
    for key, theirs, ours in (
        ("latents.channels", found.get("latent_channels", 4), source.channels),
        ("latents.factor", factor, source.factor),
        ("latents.scale", found.get("scaling_factor", 0.18215), source.scale),
    ):
        if theirs != ours:
            raise BenchError(f"{folder}: {key} is {theirs} there and {ours} in the preset; correct the preset")
