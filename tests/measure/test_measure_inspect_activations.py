"""What is seen of a model's activations is what its layers get, rotated as RobuQ rotates."""

import numpy as np
import pytest
import torch

from robuq_bench.data import ImageSet
from robuq_bench.measure.inspect_activations import activations, noisy, passes, rotations
from robuq_bench.measure.inspect_records import ROTATIONS
from robuq_bench.measure.inspect_statistics import token_statistics
from robuq_bench.models.dit import linears, predict
from robuq_bench.quant.convert import quant_linears
from robuq_bench.train.examples import Examples, of_images

TIMES = (0.1, 0.9)


@pytest.fixture(scope="module")
def held_out() -> Examples:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (70, 8, 8, 1), dtype=np.uint8)
    return of_images(ImageSet(images, np.arange(70, dtype=np.int64) % 10, tuple("0123456789")))


def test_every_image_is_seen_at_every_time(held_out):
    batches = list(noisy(held_out, TIMES, "cpu"))
    assert len(batches) == passes(70, len(TIMES)) == 4
    assert [(index, len(x)) for index, x, _, _ in batches] == [(0, 64), (0, 6), (1, 64), (1, 6)]
    for index, _, time, _ in batches:
        assert (time == TIMES[index]).all()
    assert torch.cat([batches[0][3], batches[1][3]]).tolist() == held_out.labels.tolist()


def test_time_goes_from_image_to_noise(held_out):
    signal = held_out.signal[:64]
    (_, image, *_), _, (_, noise, *_), _ = noisy(held_out, (0.0, 1.0), "cpu")
    assert image.equal(signal)
    assert abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1, abs=0.05)
    (_, half, *_), *_ = noisy(held_out, (0.5,), "cpu")
    (_, again, *_), *_ = noisy(held_out, (0.5,), "cpu")
    assert half.equal(again)
    assert (2 * half - signal).std() == pytest.approx(1, abs=0.05)


def test_rotations_are_those_of_the_recipe(denoiser, converted, in_root):
    model = denoiser()
    found = rotations(model, sign_seed=3)
    assert tuple(found) == ROTATIONS
    robuq = quant_linears(converted("robuq/W1.58A4", seed=3))
    for name, (_, _, linear) in linears(model).items():
        x = torch.randn(5, linear.in_features)
        assert found["none"][name](x) is x
        assert found["full"][name](x).equal(robuq[name].hidden(x))
        for kind in ROTATIONS:
            assert found[kind][name](x).square().sum(-1).numpy() == pytest.approx(x.square().sum(-1).numpy(), rel=1e-5)


def test_without_signs_a_shared_mean_ends_in_few_channels(denoiser, in_root):
    found = rotations(denoiser(), 0)
    ones = torch.ones(1, 192)  # width of fc2; 192 = 12 * 16
    largest = {kind: (found[kind]["blocks.0.fc2"](ones).square().max() / 192).item() for kind in ("unsigned", "full")}
    assert largest["unsigned"] > 5 * largest["full"]


def test_a_layer_is_described_by_its_inputs(denoiser, held_out, in_root):
    model = denoiser()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    found = activations(model, held_out, TIMES, 0, "cpu", lambda: calls.append(1))
    assert len(calls) == 4
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "the model is only looked at"
    layers = linears(model)
    assert [layer.name for layer in found.layers] == list(layers)
    assert not any(linear._forward_pre_hooks for _, _, linear in layers.values())
    assert set(found.controls) == {48, 192}

    seen = []
    hook = layers["blocks.1.fc2"][2].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].reshape(-1, 192))
    )
    with torch.no_grad():
        for index, x, time, labels in noisy(held_out, TIMES, "cpu"):
            if index == 1:
                predict(model, x, time, labels)
    hook.remove()
    expected = {name: values.mean().item() for name, values in token_statistics(torch.cat(seen)).items()}
    layer = next(layer for layer in found.layers if layer.name == "blocks.1.fc2")
    assert layer.width == 192
    at_last = layer.views["none"].by_time[1]
    assert at_last.tokens == 70 * 16
    assert at_last.kurtosis == pytest.approx(expected["kurtosis"], rel=1e-5)
    assert at_last.gaussian[1] == pytest.approx(expected["gaussian 2"], rel=1e-4)
    assert layer.views["none"].overall.tokens == 2 * 70 * 16
    assert layer.views["full"].by_time[1].kurtosis != pytest.approx(at_last.kurtosis, rel=0.01)


def test_adaln_sees_one_token_an_image(denoiser, held_out, in_root):
    found = activations(denoiser(), held_out, TIMES, 0, "cpu", lambda: None)
    assert {layer.views["none"].overall.tokens for layer in found.layers if layer.name.endswith("adaln")} == {140}
    assert {layer.views["none"].overall.tokens for layer in found.layers if layer.name.endswith("qkv")} == {2240}


def test_an_untrained_layer_is_named(denoiser, held_out, in_root, refused):
    model = denoiser()
    qkv = linears(model)["blocks.0.qkv"][2]
    qkv.weight.data.zero_()
    qkv.bias.data.zero_()  # attention then mixes zeros
    refused(
        lambda: activations(model, held_out, TIMES, 0, "cpu", lambda: None), "blocks.0.proj", "values are all equal"
    )
