"""The sensitivity profile: what it measures, and that it leaves the model as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robuq_bench.allocate import profile
from robuq_bench.allocate.profile import block_linears, sensitivity
from robuq_bench.models.dit import layer_type
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.objective import draw, loss

ROW, WIDTHS = "robuq/W1.58A4", (1, 2, 3, 4)


@pytest.fixture
def batches(shape):
    generator = torch.Generator().manual_seed(5)
    signal = torch.rand((20, shape.channels, shape.size, shape.size), generator=generator) * 2 - 1
    labels = torch.arange(20) % shape.classes
    return [draw(signal, labels, 8, shape.classes, 0.1, index) for index in range(2)]


def mean_loss(model, batches) -> float:
    with torch.no_grad():
        return sum(loss(model, batch).item() for batch in batches) / len(batches)


def test_profile_leaves_the_model_as_it_was(converted, batches):
    model = converted(ROW)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantisers = [layer.activation_quantiser for layer in block_linears(model).values()]
    value = mean_loss(model, batches)
    sensitivity(model, batches, WIDTHS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(
        layer.activation_quantiser is own for layer, own in zip(block_linears(model).values(), quantisers, strict=True)
    )
    assert not any(layer._forward_pre_hooks for layer in block_linears(model).values())
    assert mean_loss(model, batches) == value


def test_a_failure_leaves_the_model_as_it_was(converted, batches):
    model = converted(ROW)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, batches, WIDTHS, stop)
    assert {layer.activation_quantiser.bits for layer in block_linears(model).values()} == {4}


def test_each_entry_is_the_loss_of_a_model_with_that_one_width(converted, denoiser, variant, batches):
    found = sensitivity(converted(ROW), batches, WIDTHS)
    bits = uniform_bits(denoiser(0), variant(ROW))
    assert found.base_loss == mean_loss(converted(ROW), batches)
    for row, name in enumerate(name for name in bits if layer_type(name) != "adaln"):
        for column, width in enumerate(WIDTHS):
            model = convert(denoiser(0), variant(ROW), bits | {name: width}, 0)
            assert found.loss[row, column] == mean_loss(model, batches) - found.base_loss


def test_the_width_that_a_layer_has_costs_nothing(converted, batches):
    found = sensitivity(converted(ROW), batches, WIDTHS)
    assert (found.loss[:, WIDTHS.index(4)] == 0).all()
    assert (found.loss[:, :3] != 0).all()


def test_output_error_is_that_of_the_layer_alone(converted, batches):
    model = converted(ROW)
    name = "blocks.1.fc2"
    layer, seen = block_linears(model)[name], []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean_loss(model, batches)
    hook.remove()
    found = sensitivity(model, batches, WIDTHS)
    row = list(block_linears(model)).index(name)
    own, x = layer.activation_quantiser, torch.cat(seen)
    with torch.no_grad():
        layer.activation_quantiser = None
        exact = layer(x)
        for column, width in enumerate(WIDTHS):
            layer.activation_quantiser = replace(own, bits=width)
            relative = (layer(x) - exact).square().mean() / exact.square().mean()
            assert found.mse[row, column] == pytest.approx(relative.item(), rel=1e-4)
    assert (np.diff(found.mse, axis=1) < 0).all() and (found.mse > 0).all()


def test_profile_is_deterministic_and_counts_its_work(converted, batches):
    calls = []
    one = sensitivity(converted(ROW), batches, WIDTHS, lambda: calls.append(1))
    other = sensitivity(converted(ROW), batches, WIDTHS)
    np.testing.assert_array_equal(one.loss, other.loss)
    np.testing.assert_array_equal(one.mse, other.mse)
    assert len(calls) == len(WIDTHS) * len(block_linears(converted(ROW)))


def test_adaln_is_not_profiled(converted):
    assert {layer_type(name) for name in profile.block_linears(converted(ROW))} == {"qkv", "proj", "fc1", "fc2"}
