"""Bits that fall during training: who is widened, when, and that the recipe's own bits are there at the end."""

import pytest

from robuq_bench.config.recipe import Schedule
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.warm import WarmBits


def widths(model) -> dict[str, int]:
    return {name: layer.activation_quantiser.bits for name, layer in quant_linears(model).items()}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_narrow_layers_are_wide_for_the_first_share(converted, bits):
    model = converted("robuq_uniform/W1.58A2")
    own = widths(model)
    wide = {name: max(width, bits) for name, width in own.items()}
    warm = WarmBits(model, Schedule(warm_bits=bits, warm_share=0.25))
    seen = [(warm.at(progress), widths(model)) for progress in (0.0, 0.1, 0.2499, 0.25, 0.9)]
    assert [changed for changed, _ in seen] == [True, False, False, True, False]
    assert [now for _, now in seen] == [wide] * 3 + [own] * 2
    assert own != wide


def test_a_run_that_goes_on_later_has_its_own_bits(converted):
    model = converted("robuq_uniform/W1.58A2")
    own = widths(model)
    assert not WarmBits(model, Schedule(warm_bits=4)).at(0.5)
    assert widths(model) == own


@pytest.mark.parametrize("row", ["robuq_uniform/W1.58A2", "terdit/W1.58A32", "full_precision/W32A32"])
def test_without_warm_bits_nothing_changes(converted, row):
    model = converted(row)
    assert not WarmBits(model, Schedule()).at(0.0)


def test_the_fused_path_is_told(converted):
    """Its constants lie in a buffer that kernels, and recordings of a step, read."""
    model = converted("robuq_uniform/W1.58A2")
    layer = quant_linears(model)["blocks.0.fc1"]
    before = layer.fused_numbers.clone()
    warm = WarmBits(model, Schedule(warm_bits=4))
    warm.at(0.0)
    assert layer.fused_numbers[1, 1:3].tolist() == [-8, 7]
    warm.at(0.5)
    assert layer.fused_numbers.equal(before)
