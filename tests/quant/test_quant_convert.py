"""Conversion of a whole denoiser by each recipe in baselines/: the precision map, counted levels, signs."""

import pytest
import torch
from torch import nn

from robuq_bench.config.ablation import load_ablation
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import load_variant
from robuq_bench.models.dit import LINEARS, layer_type, linears
from robuq_bench.quant.attention import EightBitAttention
from robuq_bench.quant.convert import convert, quant_linears, uniform_bits
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser

ALL = set(LINEARS)
ROTATED = {
    "robuq": ALL,
    "baseline": ALL,
    "quest_stable": ALL,
    "bitnet_v2": {"proj", "fc2"},
    "full_precision": set(),
}
SIGNED = {"robuq", "baseline"}
RANK = {"robuq": 16, "baseline": 16}
ROWS = ["full_precision/W32A32", "quest_stable/W3A3", "robuq/W3A3", "robuq/W1.58A2", "baseline/W1.58A2"]
ROWS += ["bitnet_v2/W1.58A4"]
"""What paper-facts 1.1-1.4, 4b and 5 say of each method, written down apart from the recipes."""


@pytest.mark.parametrize("row", ROWS)
def test_precision_map(row, converted):
    """Block linears at the row's bits, adaLN activations at 4; embedders and final layer untouched."""
    recipe, variant = row.split("/")
    model = converted(row)
    inside = linears(model)
    if recipe == "full_precision":
        assert all(type(layer) is nn.Linear for _, _, layer in inside.values())
        assert all(block.attn1.processor.operands is None for block in model.transformer_blocks)
        return
    weights, activations = variant[1:].split("A")
    for name, (_, _, layer) in inside.items():
        kind = layer_type(name)
        assert isinstance(layer, QuantLinear), name
        assert layer.weight_quantiser.bits == float(weights)
        assert layer.activation_quantiser.bits == (4 if kind == "adaln" else int(activations))
        assert (layer.width is not None) == (kind in ROTATED[recipe])
        assert (layer.signs is not None) == (recipe in SIGNED and kind in ROTATED[recipe])
        assert (layer.down is not None) == (recipe in RANK)
        if recipe in RANK:
            assert layer.down.shape[0] == layer.up.shape[1] == RANK[recipe]
    for block in model.transformer_blocks:
        assert isinstance(block.attn1.processor.operands, EightBitAttention)
    embedder = model.transformer_blocks[0].norm1.emb.timestep_embedder
    for outside in (embedder.linear_1, embedder.linear_2, model.proj_out_1, model.proj_out_2):
        assert type(outside) is nn.Linear
    assert type(model.pos_embed.proj) is nn.Conv2d


def test_layer_types_with_a_rank_of_their_own(converted):
    model = converted("robuq_uniform,low_rank.rank=4,low_rank.ranks.fc1=7,low_rank.ranks.adaln=0/W1.58A2")
    for name, layer in quant_linears(model).items():
        wanted = {"fc1": 7, "adaln": None}.get(layer_type(name), 4)
        assert (None if layer.down is None else len(layer.down)) == wanted, name


def test_rotation_widths(converted):
    """Full: all inputs; block-128: 128, or the largest power of two that divides the width."""
    full, blocks = (quant_linears(converted(row)) for row in ("robuq/W3A3", "quest_stable/W3A3"))
    assert {name: full[f"blocks.0.{name}"].width for name in ALL} == dict.fromkeys(ALL, 48) | {"fc2": 192}
    assert {name: blocks[f"blocks.0.{name}"].width for name in ALL} == dict.fromkeys(ALL, 16) | {"fc2": 64}


def levels(quantiser: Quantiser) -> int:
    """How many levels a format has; the symmetric absmax integers leave -2^(b-1) unused."""
    spec = quantiser.spec
    count = 3 if spec.format == "ternary" else 2**quantiser.bits
    return count - ((spec.format, spec.scale) == ("midtread", "absmax"))


def most(quantiser: Quantiser, values: torch.Tensor) -> int:
    """The largest number of different values among those that share one scale."""
    return max(len(group.unique()) for group in quantiser.groups(values).flatten(0, -2))


def test_levels_of_stored_weights_are_counted(each_row, converted):
    """3 for ternary, 2^b for the others: never more per scale, and all of them somewhere."""
    for name, layer in quant_linears(converted(each_row)).items():
        quantiser, values = layer.weight_quantiser, layer.quantised_weight()
        assert len(quantiser.encode(layer.weight, quantiser.scale(layer.weight)).unique()) == levels(quantiser), name
        assert levels(quantiser) * 0.7 < most(quantiser, values) <= levels(quantiser), name


def test_ternary_levels_are_three(converted):
    for row in ("robuq/W1.58A2", "bitnet_v2/W1.58A4"):
        for layer in quant_linears(converted(row)).values():
            assert most(layer.weight_quantiser, layer.quantised_weight()) == 3


def test_levels_of_activations_are_counted(each_row, converted, batch):
    """Tokens as they occur in a forward pass meet at most 2^b levels, and some meet nearly all of them."""
    model, counted = converted(each_row), {}

    def count(name):
        def hook(layer, inputs):
            hidden = layer.rotate(inputs[0])
            counted[name] = most(layer.activation_quantiser, layer.activation_quantiser(hidden))

        return hook

    layers = quant_linears(model)
    layers = {name: layer for name, layer in layers.items() if isinstance(layer.activation_quantiser, Quantiser)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(count(name))
    images, time, labels = batch
    with torch.no_grad():
        model(images.repeat(4, 1, 1, 1), timestep=time.repeat(4), class_labels=labels.repeat(4))
    assert counted.keys() == layers.keys()
    for name, layer in layers.items():
        limit = levels(layer.activation_quantiser)
        assert limit / 2 < counted[name] <= limit, name


def test_bits_per_layer_are_taken_from_the_map(denoiser, variant):
    """What a mixed-precision allocation will hand in; 32 leaves the activation alone."""
    model, robuq = denoiser(), variant("robuq/W1.58A2")
    bits = uniform_bits(model, robuq) | {"blocks.0.qkv": 4, "blocks.1.fc2": 32}
    layers = quant_linears(convert(model, robuq, bits, 0))
    assert layers["blocks.0.qkv"].activation_quantiser.bits == 4
    assert layers["blocks.1.fc2"].activation_quantiser is None
    assert layers["blocks.1.qkv"].activation_quantiser.bits == 2


def test_without_an_adaln_block_the_modulation_stays_full_precision(denoiser, variant):
    model, changed = denoiser(), variant("robuq,adaln=null/W1.58A2")
    convert(model, changed, uniform_bits(model, changed), 0)
    assert {layer_type(name) for name in quant_linears(model)} == ALL - {"adaln"}
    assert all(type(block.norm1.linear) is nn.Linear for block in model.transformer_blocks)


def test_signs_follow_layer_and_seed(converted):
    first, again, other = (quant_linears(converted("robuq/W1.58A2", seed)) for seed in (0, 0, 1))
    for name, layer in first.items():
        assert layer.signs.dtype == torch.int8
        assert set(layer.signs.tolist()) == {-1, 1}
        assert torch.equal(layer.signs, again[name].signs)
        assert not torch.equal(layer.signs, other[name].signs)
    assert not torch.equal(first["blocks.0.qkv"].signs, first["blocks.1.qkv"].signs)


def test_more_bits_change_the_model_less(denoiser, converted, batch):
    """Finer grids leave the model nearer to what it computed before."""
    images, time, labels = batch
    run = lambda model: model(images, timestep=time, class_labels=labels).sample  # noqa: E731
    with torch.no_grad():
        exact = run(denoiser())
        coarse = run(converted("robuq/W1.58A2"))
        fine = run(converted("robuq/W4A4"))
    error = [(value - exact).norm() / exact.norm() for value in (fine, coarse)]
    assert error[0] < 0.5 * error[1]


def test_rank_that_does_not_fit_is_refused(denoiser, variant, refused):
    model, wide = denoiser(), variant("robuq,low_rank.rank=48/W1.58A2")
    refused(lambda: convert(model, wide, uniform_bits(model, wide), 0), "low_rank.rank 48", "lower it")


def test_zero_branch_follows_the_seed_and_leaves_the_global_generator_alone(denoiser, variant):
    changed = variant("robuq,low_rank.init=zero/W1.58A2")

    def down(sign_seed: int) -> torch.Tensor:
        model = denoiser()
        return quant_linears(convert(model, changed, uniform_bits(model, changed), sign_seed))["blocks.0.qkv"].down

    before = torch.get_rng_state()
    assert torch.equal(down(0), down(0))
    assert not torch.equal(down(0), down(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_smoothing_uses_the_ranges_of_inputs_and_weights(denoiser, variant):
    """SmoothQuant: s = max|x|^a / max|W|^(1 - a) per input channel; without ranges a skeleton with s = 1."""
    model, changed = denoiser(), variant("svdquant_ptq,smoothing.strength=0.7,low_rank=null/W4A4")
    bits = uniform_bits(model, changed)
    weight = linears(model)["blocks.1.fc2"][2].weight.detach().clone()
    ranges = {name: torch.rand(layer.in_features) + 0.1 for name, (_, _, layer) in linears(model).items()}
    layer = quant_linears(convert(model, changed, bits, 0, ranges))["blocks.1.fc2"]
    expected = ranges["blocks.1.fc2"] ** 0.7 / weight.abs().amax(0) ** 0.3
    torch.testing.assert_close(layer.smooth, expected)
    torch.testing.assert_close(layer.weight.detach(), weight * expected)
    bare = quant_linears(convert(denoiser(), changed, bits, 0))["blocks.1.fc2"]
    assert torch.equal(bare.smooth, torch.ones(192))


def test_what_might_beat_robuq_trains_on_the_fused_path(in_root, denoiser, shape):
    """An unfused layer would cost three times as much to train: no setting of the ablation has one."""
    for _, recipe, name in load_ablation("beat_robuq").rows():
        row = load_variant(recipe, name)
        model = denoiser(spec=DiT(width=48, depth=1, heads=2, patch=2), shape=shape)
        convert(model, row, uniform_bits(model, row), 0)
        assert all(layer.fused_rules is not None and layer.gain is None for layer in quant_linears(model).values()), row
