"""A row taken apart: codes, branch and errors against figures computed another way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robuq_bench.data import ImageSet
from robuq_bench.engine import packed
from robuq_bench.files import sha256_file
from robuq_bench.measure.inspect_activations import noisy
from robuq_bench.measure.inspect_row import load, row
from robuq_bench.models import checkpoint
from robuq_bench.models.dit import linears, predict
from robuq_bench.quant.convert import convert, quant_linears, uniform_bits
from robuq_bench.train.examples import Examples, of_images

TIMES = (0.25, 0.75)


@pytest.fixture(scope="module")
def held_out() -> Examples:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    return of_images(ImageSet(images, np.arange(12, dtype=np.int64) % 10, tuple("0123456789")))


@pytest.fixture
def files(converted, card, tmp_path):
    """Writes a row as a packed and a trained file; `model` takes the place of a random one."""

    def make(expression: str, model: nn.Module | None = None) -> tuple[Path, Path]:
        model, facts = model or converted(expression), card(expression)
        checkpoint.save(tmp_path / "model.safetensors", model.state_dict(), facts)
        packed.export(model, facts, tmp_path / "packed.safetensors")
        return tmp_path / "packed.safetensors", tmp_path / "model.safetensors"

    return make


@pytest.fixture
def taken_apart(files, denoiser, held_out):
    def make(expression: str):
        return row(files(expression), denoiser(), held_out, TIMES, "cpu", lambda: None)

    return make


def test_what_a_row_is(taken_apart, denoiser, tmp_path):
    found = taken_apart("robuq_uniform/W1.58A2")
    assert (found.recipe, found.variant, found.seed) == ("robuq_uniform", "W1.58A2", 0)
    assert found.packed == sha256_file(tmp_path / "packed.safetensors")
    assert [layer.name for layer in found.layers] == list(linears(denoiser()))
    assert {layer.bits for layer in found.layers if layer.name.endswith("adaln")} == {4}
    assert {layer.bits for layer in found.layers if layer.name.endswith("fc2")} == {2}


def test_normal_weights_have_the_known_zeros_and_error(taken_apart):
    """paper-facts 1.2: 69.0 % non-zero, relative error 0.2130; BitNet's scale on the same mask: 0.2634."""
    found = taken_apart("robuq_uniform/W1.58A2").control
    assert (found.zero, found.rounding_error) == pytest.approx((0.310, 0.2130), abs=2e-3)
    assert taken_apart("bitnet_v2/W1.58A4").control.rounding_error == pytest.approx(0.2634, abs=2e-3)


def test_weights_are_those_of_the_codes(taken_apart, converted):
    layers = quant_linears(converted("robuq_uniform/W1.58A2"))
    for layer in taken_apart("robuq_uniform/W1.58A2").layers:
        latent = layers[layer.name].weight.detach()
        threshold = latent.abs().mean(-1, keepdim=True) / 2
        assert layer.zero == pytest.approx((latent.abs() < threshold).double().mean().item(), abs=1e-9)
        assert layer.plus == pytest.approx((latent >= threshold).double().mean().item(), abs=1e-9)
        assert layer.minus + layer.zero + layer.plus == pytest.approx(1)
        values = layers[layer.name].quantised_weight()
        assert layer.rounding_error == pytest.approx(((values - latent).norm() / latent.norm()).item() ** 2, rel=1e-4)


def test_drift_of_an_untrained_row_is_its_rounding(taken_apart):
    """A branch of zeros, and a weight that is the rotated full-precision one: FP16 scales are all that differs."""
    for layer in taken_apart("robuq_uniform,low_rank.init=zero/W1.58A2").layers:
        assert layer.drift == pytest.approx(layer.rounding_error, rel=2e-3)
        assert (layer.branch.output_share, layer.branch.weight_share) == (0, 0)
        assert layer.branch.main_share == pytest.approx(1)


def test_a_branch_of_the_weight_lowers_the_drift(taken_apart):
    zero, svd = (taken_apart(f"robuq_uniform,low_rank.init={init}/W1.58A2") for init in ("zero", "svd"))
    assert all(b.drift < a.drift for a, b in zip(zero.layers, svd.layers, strict=True))


def test_drift_undoes_smoothing(files, denoiser, variant, held_out):
    """Four bits change the smoothed, rotated weight little; against the plain one it would be another matrix."""
    expression = "svdquant_ptq/W4A4"
    model, bits = denoiser(), uniform_bits(denoiser(), variant(expression))
    ranges = {name: torch.rand(linear.in_features) * 9 + 1 for name, (_, _, linear) in linears(model).items()}
    paths = files(expression, convert(model, variant(expression), bits, 0, ranges))
    found = row(paths, denoiser(), held_out, TIMES, "cpu", lambda: None)
    assert all(layer.drift < 0.03 for layer in found.layers)


def test_what_the_branch_carries(files, converted, denoiser, held_out):
    trained, generator = converted("robuq_uniform/W1.58A2"), torch.Generator().manual_seed(0)
    for layer in quant_linears(trained).values():  # fresh from the SVD, up and down have orthogonal columns
        for part in (layer.up, layer.down):
            part.data += 0.1 * torch.randn(part.shape, generator=generator)
    paths = files("robuq_uniform/W1.58A2", trained)
    found = {layer.name: layer for layer in row(paths, denoiser(), held_out, TIMES, "cpu", lambda: None).layers}
    model, _ = packed.load(paths[0])
    name = "blocks.1.fc1"
    layer, seen = quant_linears(model)[name], []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for _, x, time, labels in noisy(held_out, TIMES, "cpu"):
            predict(model, x, time, labels)
        hidden = layer.hidden(torch.cat(seen))
        product = layer.up @ layer.down
        branch, main = hidden @ product.T, layer.activation_quantiser(hidden) @ layer.weight.T
    branch_share, main_share = ((part.norm() / (branch + main).norm()).item() ** 2 for part in (branch, main))
    carried = found[name].branch
    assert carried.output_share == pytest.approx(branch_share, rel=1e-4)
    assert carried.main_share == pytest.approx(main_share, rel=1e-4)
    rank = len(layer.down)
    assert carried.singular_values == pytest.approx(torch.linalg.svdvals(product)[:rank].tolist(), rel=1e-4)
    weight_share = (product.norm() / (product + layer.weight).norm()).item() ** 2
    assert carried.weight_share == pytest.approx(weight_share, rel=1e-4)
    error = ((layer.activation_quantiser(hidden) - hidden).norm() / hidden.norm()).item() ** 2
    assert found[name].activation_error == pytest.approx(error, rel=1e-4)


def test_a_row_without_branch_or_quantised_activations(taken_apart):
    assert all(layer.branch is None for layer in taken_apart("bitnet_v2/W1.58A4").layers)
    assert all(layer.activation_error is None for layer in taken_apart("terdit/W1.58A32").layers)


def test_every_recipe_can_be_taken_apart(each_row, taken_apart, in_root):
    if each_row.startswith("full_precision"):
        pytest.skip("quantises nothing")
    for layer in taken_apart(each_row).layers:
        assert 0 <= layer.rounding_error < 1


def test_a_weight_of_zeros_is_named(files, denoiser, held_out, refused):
    original = denoiser()
    linears(original)["blocks.0.proj"][2].weight.data.zero_()
    paths = files("robuq_uniform/W1.58A2")
    refused(lambda: row(paths, original, held_out, TIMES, "cpu", lambda: None), "blocks.0.proj: all zeros")


def test_files_of_different_rows_are_refused(files, card, refused, tmp_path):
    packed_path, trained_path = files("robuq_uniform/W1.58A2")
    tensors, facts = checkpoint.load(trained_path, "trained")
    checkpoint.save(tmp_path / "other.safetensors", tensors, replace(facts, provenance={"commit": "def"}))
    refused(lambda: load(packed_path, tmp_path / "other.safetensors"), "was not packed from", "other.safetensors")


def test_a_row_without_quantised_weights_is_refused(files, refused):
    refused(lambda: load(*files("full_precision/W32A32")), "quantises no weights")
