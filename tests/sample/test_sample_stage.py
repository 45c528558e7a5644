"""The verb `sample` with either denoiser: the file says which drew the images."""

import numpy as np
import pytest

from robuq_bench import cli
from robuq_bench.config.preset import DiT, load_preset
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.standin import standin
from robuq_bench.models.dit import LINEARS, Shape
from robuq_bench.sample.archive import load
from robuq_bench.sample.generate import generate


@pytest.fixture
def model(tmp_path, variant):
    """A random packed model that the engine can run."""
    spec, shape = DiT(width=128, depth=2, heads=4, patch=2), Shape(size=8, channels=1, classes=10)
    bits = {f"blocks.{i}.{kind}": 4 for i in range(2) for kind in LINEARS}
    standin(spec, shape, variant("robuq/W1.58A4"), bits, tmp_path / "packed.safetensors")
    return tmp_path / "packed.safetensors"


def sample(model, denoiser: str, **changes) -> int:
    given = {"sample.n": 6, "sample.steps": 3, "sample.lane": 4, "sample.denoiser": denoiser} | changes
    text = ",".join(f"{key}={value}" for key, value in given.items())
    out = model.parent / f"{denoiser}.npz"
    return cli.main(["sample", "--preset", "smoke", "--set", text, "--packed", str(model), "--out", str(out)])


def test_both_denoisers_draw_nearly_the_same(in_root, model):
    assert sample(model, "simulated") == 0 and sample(model, "deployed") == 0
    simulated, deployed = (load(model.parent / f"{name}.npz") for name in ("simulated", "deployed"))
    assert simulated.images.shape == deployed.images.shape == (6, 8, 8, 1)
    assert np.array_equal(simulated.labels, deployed.labels)
    assert np.abs(simulated.images.astype(float) - deployed.images).mean() < 3
    assert simulated.card["protocol"]["denoiser"] == "simulated"
    assert deployed.card["protocol"]["denoiser"] == "deployed" and deployed.card["notes"] == []
    assert simulated.card["packed"] == deployed.card["packed"]


def test_deployed_images_do_not_depend_on_what_else_is_asked_for(in_root, model):
    sample(model, "deployed")
    images = load(model.parent / "deployed.npz").images
    plan = load_preset("smoke", "sample.n=6,sample.steps=3,sample.lane=4").sample
    denoiser = deploy(model, "cpu")
    for seeds in ([5], [3, 0, 4]):
        some, _ = generate(denoiser, denoiser.card.shape, seeds, plan)
        assert np.array_equal(some, images[seeds])


def test_a_recipe_the_engine_cannot_run(in_root, converted, card, tmp_path, capsys):
    path = tmp_path / "packed.safetensors"
    packed.export(converted("bitnet_v2/W1.58A4"), card("bitnet_v2/W1.58A4"), path)
    assert sample(path, "deployed") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the engine cannot run W1.58A4" in error
    assert not (tmp_path / "deployed.npz").exists()


def test_unknown_denoiser(in_root, model, capsys):
    assert sample(model, "fast") == 2
    assert "sample.denoiser" in capsys.readouterr().err
