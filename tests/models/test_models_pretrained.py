"""Published weights: the same function after tying and fusing, and one line for every folder that is not the model."""

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from standins import CLASSES, LATENT, dit

from robuq_bench.config.preset import DiT, Pretrained
from robuq_bench.models import pretrained
from robuq_bench.models.dit import Shape, predict

SPEC, SHAPE = DiT(width=48, depth=2, heads=2, patch=2), Shape(LATENT, 4, CLASSES, variance=True)


@pytest.fixture(scope="module")
def published() -> DiTTransformer2DModel:
    """Every parameter random, embedders equal."""
    model = dit(steps=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "norm1.emb" not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def folder(tmp_path, published):
    published.save_pretrained(tmp_path / "transformer")
    return tmp_path


def load(folder, spec=SPEC, shape=SHAPE, sha256=None):
    return pretrained.load(Pretrained(path=str(folder), sha256=sha256), spec, shape)


def rewritten(folder, **changes):
    path = folder / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_the_loaded_model_computes_what_diffusers_computes(folder, published, inner):
    model, _ = load(folder / inner)
    x, labels = torch.randn(5, 4, LATENT, LATENT), torch.tensor([0, 3, 11, CLASSES, CLASSES])
    time = torch.tensor([0, 1, 250, 500, 999])
    with torch.no_grad():
        expected = published(x, timestep=time, class_labels=labels).sample
        actual = predict(model.eval(), x, time / 1000, labels)
    assert actual.shape == (5, 8, LATENT, LATENT)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_one_embedder_is_kept(folder, published):
    model, _ = load(folder)
    embedder = sum(p.numel() for p in published.transformer_blocks[1].norm1.emb.parameters())
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, published))
    assert ours == theirs - embedder


def test_a_model_under_its_old_name_in_diffusers_loads(folder, published):
    """As the files on the hub: another class name, and keys that the class does not know."""
    model, digest = load(rewritten(folder, _class_name="Transformer2DModel", cross_attention_dim=None))
    assert digest == load(folder)[1]
    assert torch.equal(model.proj_out_2.weight, published.proj_out_2.weight)


def test_hash(folder, refused):
    _, digest = load(folder)
    assert load(folder, sha256=digest)[1] == digest
    refused(lambda: load(folder, sha256="0" * 64), folder, digest, "is it another model?")


def test_blocks_whose_embedders_differ_are_refused(tmp_path, published, refused):
    with torch.no_grad():
        published.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2.bias[3] += 1e-3
    published.save_pretrained(tmp_path)
    with torch.no_grad():
        published.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2.bias.copy_(
            published.transformer_blocks[0].norm1.emb.timestep_embedder.linear_2.bias
        )
    refused(lambda: load(tmp_path), "embedder of block 1", "timestep_embedder.linear_2.bias")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_layers", 28, ("num_layers is 28 there and 2 here",)),
        ("num_attention_heads", 16, ("num_attention_heads",)),
        ("sample_size", 64, ("sample_size is 64 there and 8 here",)),
        ("out_channels", None, ("out_channels is 4 there and 8 here",)),
        ("num_embeds_ada_norm", 1000, ("num_embeds_ada_norm is 1000 there and 12 here",)),
        ("norm_type", "layer_norm", ("norm_type",)),
    ],
)
def test_another_model_is_one_line(folder, refused, key, value, words):
    refused(lambda: load(rewritten(folder, **{key: value})), "another model than the preset's", *words)


def test_what_is_missing_or_damaged_is_one_line(folder, tmp_path_factory, refused):
    empty = tmp_path_factory.mktemp("empty")
    refused(lambda: load(empty), empty, "no config.json", "robuq-bench fetch")
    refused(lambda: load(empty / "none"), "no such folder")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(lambda: load(folder), "cannot be loaded as DiTTransformer2DModel")
    weights.unlink()
    refused(lambda: load(folder), "cannot be loaded")


def test_weights_that_lack_a_tensor_are_refused_not_made_up(folder, refused):
    from safetensors.torch import load_file, save_file

    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["proj_out_1.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(lambda: load(folder), "lack proj_out_1.bias")
