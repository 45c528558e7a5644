"""Packed files of a model that the engine can run: width 128, two blocks, 4-channel latents of 8 x 8, 1000 classes."""

import dataclasses

import pytest
import torch

from robuq_bench.config.preset import DiT
from robuq_bench.engine import packed
from robuq_bench.models import dit
from robuq_bench.models.checkpoint import Card
from robuq_bench.quant.convert import convert, uniform_bits

SPEC = DiT(width=128, depth=2, heads=4, patch=2)
SHAPE = dit.Shape(size=8, channels=4, classes=1000)
MIXED = {"qkv": 2, "proj": 3, "fc1": 4, "fc2": 1}


@pytest.fixture
def latent_card(variant, denoiser):
    """`latent_card(row)`: the card of the row's model; `mixed` gives each type of layer its own bits."""

    def make(row: str, mixed: bool = False) -> Card:
        chosen = variant(row)
        bits = uniform_bits(denoiser(0, SPEC, SHAPE), chosen)
        if mixed:
            bits = {name: MIXED.get(dit.layer_type(name), width) for name, width in bits.items()}
        return Card("trained", "test", chosen, 0, SPEC, SHAPE, bits, "ok", "", {}, {"commit": "abc"})

    return make


@pytest.fixture
def latent_file(tmp_path, latent_card, denoiser):
    """`latent_file(row)`: path of a packed file with random weights."""

    def make(row: str, mixed: bool = False):
        card, path = latent_card(row, mixed), tmp_path / "latent.safetensors"
        packed.export(convert(denoiser(0, SPEC, SHAPE), card.variant, card.bits, 0), card, path)
        return path

    return make


@pytest.fixture
def latents():
    """Inputs of that model: images, times, labels; the last label is "no class"."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, SHAPE.channels, SHAPE.size, SHAPE.size, generator=generator)
    return images, torch.tensor([3.0, 500.0, 999.0]), torch.tensor([0, 9, SHAPE.classes])


@pytest.fixture
def replaced():
    """`replaced(card, "key.key", value)`: a card that lies: one value deep inside changed, unvalidated."""

    def change(value, path: str, new):
        head, _, rest = path.partition(".")
        inner = change(getattr(value, head), rest, new) if rest else new
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(value, **{head: inner})
        return value.model_copy(update={head: inner})

    return change
