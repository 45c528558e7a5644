"""The denoiser: size, initialisation, tied embedders, and its fused attention against diffusers' own."""

import copy

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from robuq_bench.config.preset import DiT
from robuq_bench.models import dit


def run(model, batch) -> torch.Tensor:
    images, time, labels = batch
    with torch.no_grad():
        return model(images, timestep=time, class_labels=labels).sample


def test_parameters_of_dit_xl_2():
    """The DiT paper's 675 129 632, less its fixed position table, less its 16 outputs of predicted variance."""
    with torch.device("meta"):
        model = dit.build(DiT(width=1152, depth=28, heads=16, patch=2), dit.Shape(size=32, channels=4, classes=1000))
    positions, variance = 256 * 1152, 2 * 2 * 4 * (1152 + 1)
    assert sum(p.numel() for p in model.parameters()) == 675_129_632 - positions - variance


def test_output_has_the_shape_of_the_input(denoiser, batch):
    images, time, _ = batch
    out = denoiser()(images, timestep=time, class_labels=torch.tensor([0, 9, 10])).sample
    assert out.shape == images.shape and torch.isfinite(out).all()


@pytest.mark.parametrize(("size", "patch", "channels"), [(8, 4, 3), (16, 4, 1), (4, 1, 2)])
def test_shapes(size, patch, channels):
    spec, shape = DiT(width=24, depth=1, heads=3, patch=patch), dit.Shape(size, channels, 4)
    x = torch.zeros(2, channels, size, size)
    assert dit.predict(dit.build(spec, shape), x, torch.ones(2), torch.tensor([0, 4])).shape == x.shape


def test_a_fresh_model_predicts_zero(spec, shape, batch):
    """adaLN-zero (DiT, sec. 3.2): the final layer and every gate start at zero."""
    assert torch.equal(run(dit.build(spec, shape), batch), torch.zeros_like(batch[0]))


def test_blocks_of_a_fresh_model_are_the_identity(spec, shape, batch):
    model, seen = dit.build(spec, shape), []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    run(model, batch)
    assert len(seen) == spec.depth and all(torch.equal(before, after) for before, after in seen)


def test_build_follows_its_seed_and_leaves_the_global_generator_alone(spec, shape):
    before = torch.get_rng_state()
    first, again, other = (dit.build(spec, shape, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(123)
    elsewhere = dit.build(spec, shape, 0).state_dict()
    assert all(torch.equal(first[name], elsewhere[name]) for name in first)
    torch.set_rng_state(before)


def test_embedders_are_tied_and_saved_once(spec, shape, denoiser, batch):
    model = denoiser()
    saved = [name for name in model.state_dict() if "class_embedder" in name]
    assert saved == ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    before = run(model, batch)
    with torch.no_grad():
        model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[10] += 1
    after = run(model, batch)
    assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2], before[2])
    blocks = model.transformer_blocks
    assert all(block.norm1.emb is blocks[0].norm1.emb for block in blocks)
    clone = copy.deepcopy(model)
    assert all(block.norm1.emb is clone.transformer_blocks[0].norm1.emb for block in clone.transformer_blocks)
    assert clone.transformer_blocks[0].norm1.emb is not blocks[0].norm1.emb


def test_labels_are_never_dropped_inside(denoiser, batch):
    """Label dropout belongs to the data: in training mode the model is a function of its inputs."""
    model, many = denoiser(), [part.repeat(60, *[1] * (part.ndim - 1)) for part in batch]
    assert torch.equal(run(model.train(), many), run(model.eval(), many))


def test_label_and_time_change_the_output(denoiser, batch):
    model, (images, time, labels) = denoiser(), batch
    before = run(model, batch)
    assert not torch.allclose(run(model, (images, time, labels.flip(0)))[0], before[0])
    assert not torch.allclose(run(model, (images, time.flip(0), labels))[0], before[0])


def test_fused_and_tied_model_computes_what_diffusers_computes(spec, shape, denoiser, batch):
    """The same weights in an untouched DiTTransformer2DModel: separate q, k, v, an embedder in every block."""
    plain = DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.width // spec.heads,
        in_channels=shape.channels,
        num_layers=spec.depth,
        sample_size=shape.size,
        patch_size=spec.patch,
        num_embeds_ada_norm=shape.classes,
    )
    model, weights = denoiser(), {}
    for name, tensor in model.state_dict().items():
        if "to_qkv" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace("to_qkv", f"to_{part}")] = piece
        elif "norm1.emb" in name:
            for index in range(spec.depth):
                weights[name.replace("blocks.0.", f"blocks.{index}.")] = tensor
        else:
            weights[name] = tensor
    plain.load_state_dict(weights)
    torch.testing.assert_close(run(model, batch), run(plain.eval(), batch), rtol=1e-4, atol=1e-5)


def test_predict_runs_time_from_zero_to_one(denoiser, batch):
    images, _, labels = batch
    model, time = denoiser(), torch.tensor([0.0, 0.25, 1.0])
    with torch.no_grad():
        assert torch.equal(dit.predict(model, images, time, labels), run(model, (images, time * 1000, labels)))


def test_linears_lists_every_block_linear_by_its_word(spec, shape):
    found = dit.linears(dit.build(spec, shape))
    assert [*found] == [f"blocks.{i}.{kind}" for i in range(2) for kind in ("qkv", "proj", "fc1", "fc2", "adaln")]
    sizes = {name: (layer.in_features, layer.out_features) for name, (_, _, layer) in found.items()}
    expected = {"qkv": (48, 144), "proj": (48, 48), "fc1": (48, 192), "fc2": (192, 48), "adaln": (48, 288)}
    assert sizes == {name: expected[dit.layer_type(name)] for name in found}
    for holder, attribute, layer in found.values():
        assert holder.get_submodule(attribute) is layer
