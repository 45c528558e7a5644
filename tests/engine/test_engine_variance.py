"""A model that predicts a variance as well (twice the channels) is packed, loaded and deployed like any other."""

import torch

from robuq_bench.config.preset import DiT
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.models.dit import Shape
from robuq_bench.quant.convert import convert, uniform_bits

SPEC, SHAPE = DiT(width=128, depth=2, heads=4, patch=2), Shape(8, 4, 12, variance=True)


def test_the_deployed_model_predicts_what_the_simulated_one_does(denoiser, variant, card, tmp_path):
    row = "robuq_uniform/W1.58A2"
    model = denoiser(0, SPEC, SHAPE)
    bits = uniform_bits(model, variant(row))
    convert(model, variant(row), bits, 0)
    path = tmp_path / "packed.safetensors"
    packed.export(model, card(row, model=SPEC, shape=SHAPE, bits=bits), path)
    deployed, (simulated, found) = deploy(path, "cpu"), packed.load(path)
    assert found.shape == SHAPE and deployed.config.out_channels == 8
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # no token at a cell's edge
    time, labels = torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 5, 12])
    with torch.no_grad():
        expected = simulated(x, timestep=time, class_labels=labels).sample
    actual = deployed(x, timestep=time, class_labels=labels).sample
    assert actual.shape == (3, 8, 8, 8)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
