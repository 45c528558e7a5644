"""Stand-ins for what users of the `paper` presets bring, small and random, in the true file formats.

`python tests/standins.py FOLDER` writes all that config/paper_standin.yaml names.
"""

import copy
import sys
import unittest.mock
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from PIL import Image

from robuq_bench.metrics.extractors import Pixels
from robuq_bench.metrics.frechet import moments
from robuq_bench.train.processes import PROCESSES

CLASSES, SIDE, FACTOR, SCALE = 12, 32, 4, 0.18215
LATENT = SIDE // FACTOR


def save_images(folder: Path, classes: int = CLASSES, each: int = 12) -> Path:
    """Class folders of photos of several sizes: a colour per class, stripes, noise. JPEG and PNG."""
    random = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"n{label:08d}"
        place.mkdir(parents=True)
        for index in range(each):
            image = photo(random, label / classes, *random.integers(SIDE, 3 * SIDE, 2))
            suffix = "png" if index % 3 == 0 else "JPEG"
            Image.fromarray(image).save(place / f"{label}_{index}.{suffix}")
    return folder


def photo(random: np.random.Generator, hue: float, height: int, width: int) -> np.ndarray:
    colour = 127 + 100 * np.cos(2 * np.pi * (hue + np.arange(3) / 3))
    stripes = 40 * np.sin(np.arange(width) / random.uniform(2, 8))[None, :, None]
    return (colour + stripes + 20 * random.standard_normal((height, width, 3))).clip(0, 255).astype(np.uint8)


def vae(seed: int = 0) -> AutoencoderKL:
    """A random autoencoder whose scaled latents vary by about 1, as those of a trained one do."""
    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=SCALE,
    ).eval()
    random = np.random.default_rng(1)
    photos = np.stack([photo(random, k / 16, SIDE, SIDE) for k in range(16)])
    signal = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = model.encode(signal).latent_dist.mean
        last = model.quant_conv
        last.weight[:4] /= mean.std() * SCALE
        last.bias[:4] = (last.bias[:4] - mean.mean((0, 2, 3))) / (mean.std() * SCALE)
        last.weight[4:], last.bias[4:] = 0, -8  # log variance
    return model


def dit(classes: int = CLASSES, steps: int = 100) -> DiTTransformer2DModel:
    """A two-layer DiT with learned variance and an embedder in every block, all equal, as in the published files.

    It is trained for a moment on noise, so that it does better than predicting nothing.
    """
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=LATENT,
        num_embeds_ada_norm=classes,
    )
    process, shared = PROCESSES["ddpm"], model.transformer_blocks[0].norm1.emb
    model.transformer_blocks[1].norm1.emb = shared
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        time = process.times(32, None, torch.device("cpu"))
        x, target = process.noised(torch.randn(32, 4, LATENT, LATENT), torch.randn(32, 4, LATENT, LATENT), time)
        output = model(x, timestep=time * 1000, class_labels=torch.randint(classes, (32,))).sample
        process.loss(output, x, time, target).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.transformer_blocks[1].norm1.emb = copy.deepcopy(shared)
    return model.eval()


def save_pipeline(folder: Path, classes: int = CLASSES) -> Path:
    """`transformer/` and `vae/` as in the folder of a DiTPipeline."""
    dit(classes).save_pretrained(folder / "transformer")
    vae().save_pretrained(folder / "vae")
    return folder


def save_reference(path: Path, count: int = 96) -> Path:
    """Moments and images as in ADM's VIRTUAL_imagenet256_labeled.npz, but of the extractor Pixels: a covariance of
    Inception's features takes 2049 images (tests/metrics reads such files with random Inception weights)."""
    random = np.random.default_rng(2)
    images = np.stack([photo(random, k % CLASSES / CLASSES, SIDE, SIDE) for k in range(count)])
    found = Pixels().features(images)
    pooled, spatial = moments(found.pooled), moments(found.spatial)
    facts = {"mu": pooled.mean, "sigma": pooled.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(path, arr_0=images, **facts)
    return path


def save_inception(path: Path) -> Path:
    """Random weights in torch-fidelity's format: its network, built without its download, scaled so that features
    vary from image to image."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    network_class, patch = module.FeatureExtractorInceptionV3, unittest.mock.patch.object
    torch.manual_seed(0)
    with (
        patch(module, "load_state_dict_from_url", lambda *_, **__: {}),
        patch(network_class, "load_state_dict", lambda *_, **__: None),
    ):
        network = network_class("inception", ["2048"])
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, torch.nn.BatchNorm2d):  # not the identity, so that folding is tested
            torch.nn.init.uniform_(part.weight, 0.8, 1.2)
            torch.nn.init.uniform_(part.running_var, 0.8, 1.2)
            torch.nn.init.normal_(part.running_mean, std=0.1)
            torch.nn.init.normal_(part.bias, std=0.1)
    torch.save(network.state_dict(), path)
    return path


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    save_images(folder / "imagenet" / "train")
    save_pipeline(folder / "DiT-XL-2-256")
    save_reference(folder / "VIRTUAL_imagenet256_labeled.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
