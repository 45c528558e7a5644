"""The autoencoder: what diffusers computes, the preset's scale held to the folder's."""

import json

import pytest
import torch
from standins import FACTOR, SCALE, SIDE, vae

from robuq_bench.config.external import Latents
from robuq_bench.models import vae as ours


@pytest.fixture(scope="module")
def model():
    return vae()


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "vae")
    return tmp_path


def source(folder, **changes) -> Latents:
    return Latents(**{"vae": str(folder), "cache": "unused", "factor": FACTOR} | changes)


def test_encode_draws_the_posterior_from_the_given_noise(folder, model):
    autoencoder = ours.load(source(folder))
    signal, noise = torch.rand(3, 3, SIDE, SIDE) * 2 - 1, torch.randn(3, 4, SIDE // FACTOR, SIDE // FACTOR)
    with torch.no_grad():
        posterior = model.encode(signal).latent_dist
    drawn = autoencoder.encode(signal, noise)
    torch.testing.assert_close(drawn, posterior.mean + posterior.std * noise)
    assert (drawn - posterior.mean).abs().max() > 0.01, "the noise counts"


def test_decode_undoes_the_scale_and_does_not_depend_on_its_batch(folder, model):
    autoencoder = ours.load(source(folder))
    latents = torch.randn(5, 4, SIDE // FACTOR, SIDE // FACTOR)
    with torch.no_grad():
        expected = model.decode(latents / SCALE).sample
    torch.testing.assert_close(autoencoder.decode(latents, batch=2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": 0.13025}, ("latents.scale is 0.18215 there and 0.13025",)),
        ({"channels": 16}, ("latents.channels is 4 there and 16",)),
        ({"factor": 8}, ("latents.factor is 4 there and 8",)),
        ({"sha256": "0" * 64}, ("SHA-256",)),
    ],
)
def test_another_autoencoder_is_one_line(folder, refused, changes, words):
    refused(lambda: ours.load(source(folder, **changes)), folder, *words)


def test_a_folder_that_is_no_autoencoder(folder, refused):
    path = folder / "vae/config.json"
    path.write_text(json.dumps({"latent_channels": 4}))
    refused(lambda: ours.load(source(folder)), "latents.factor is None")
    path.write_text("[]")
    refused(lambda: ours.load(source(folder)), "not a configuration")
