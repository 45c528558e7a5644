"""Random packed files: the true format, sensible sizes, repeatable."""

import pytest
import torch

from robuq_bench.config.preset import DiT
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.standin import standin
from robuq_bench.models.dit import LINEARS, Shape

SPEC, SHAPE = DiT(width=384, depth=2, heads=6, patch=2), Shape(size=16, channels=4, classes=1000)
BITS = {f"blocks.{i}.{kind}": 4 if kind == "adaln" else i + 1 for i in range(SPEC.depth) for kind in LINEARS}


@pytest.fixture
def made(tmp_path, variant):
    def make(row="robuq/W1.58A2", name="s.safetensors"):
        standin(SPEC, SHAPE, variant(row), BITS, tmp_path / name)
        return tmp_path / name

    return make


def inputs(batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 16, 16, generator=generator)
    return x, torch.linspace(10, 990, batch), torch.arange(batch) * 333


def test_it_runs_everywhere_a_trained_model_runs(made):
    """Every stage keeps activations of size about one, and times and labels matter."""
    x, time, labels = inputs()
    denoiser = deploy(made(), "cpu")
    output = denoiser(x, time, labels).sample
    assert 0.3 < output.std() < 3
    model, card = packed.load(made())
    with torch.no_grad():
        expected = model(x, timestep=time, class_labels=labels).sample
    assert card.bits == BITS and card.facts["weights"] == "random" and card.preset == "stand-in"
    assert (output - expected).norm() < 0.2 * expected.norm()
    for changed in ((x, time.flip(0), labels), (x, time, labels.flip(0))):
        assert (denoiser(*changed).sample - output).norm() > 0.05 * output.norm()


def test_gates_and_branches_are_not_zero(made):
    stored = packed.read(made())
    forward = deploy(made(), "cpu")._forward
    _, time, labels = inputs()
    for shift, scale, gate, *_ in forward.modulations(forward.condition(time, labels)):
        assert all(0.05 < part.std() < 1 for part in (shift, scale, gate))
    for layer in stored.layers.values():
        assert layer.up.float().std() > 0 and layer.down.float().std() > 0 and (layer.step > 0).all()


def test_same_arguments_same_tensors(made):
    first, second = packed.read(made()), packed.read(made(name="again.safetensors"))
    assert first.card.facts == second.card.facts


def test_recipes_without_a_branch(made):
    assert packed.read(made("robuq_uniform,low_rank=null/W1.58A2")).layers["blocks.0.qkv"].up is None


def test_only_ternary_ones(made, refused):
    refused(lambda: made("robuq/W4A4"), "a stand-in has ternary weights")
