"""Which recipes the engine runs, and that its rotation is the trained one."""

import pytest
import torch

from robuq_bench.engine.kernels.reference import rotate_quantize_reference
from robuq_bench.engine.support import kernel_rotation, unsupported
from robuq_bench.errors import BenchError
from robuq_bench.quant.hadamard import block_width, rotate

WIDTHS = [128, 512, 384, 1536, 768, 3072, 1024, 4096, 1152, 4608]


def test_ternary_robuq_runs_and_no_other_recipe_does(each_row, latent_card):
    runs = each_row.split("/")[0] in ("robuq", "robuq_uniform") and "W1.58" in each_row
    reason = unsupported(latent_card(each_row))
    assert (reason is None) == runs
    assert reason is None or "\n" not in reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("weight.granularity=group", "by group"),
        ("weight.centre=true", "with an offset"),
        ("activation.scale=rms", "scale 'rms'"),
        ("activation.format=midtread,activation.step=midrise", "step 'midrise'"),
        ("activation.granularity=group", "by group"),
        ("adaln=null", "adaLN linears in full precision"),
        ("adaln.activation_bits=8", "8-bit activations in blocks.0.adaln"),
        ("rotation=null", "does not rotate"),
        ("rotation.layers=proj+fc2", "does not rotate"),
        ("smoothing.strength=0.5", "smooths"),
        ("low_rank.rank=32", "rank 32"),
    ],
)
def test_each_part_it_lacks_is_named(latent_card, change, word):
    assert word in unsupported(latent_card(f"robuq_uniform,{change}/W1.58A2"))


@pytest.mark.parametrize("change", ["low_rank=null", "low_rank.rank=4", "attention_bits=null", "rotation.signs=false"])
def test_what_it_has(latent_card, change):
    assert unsupported(latent_card(f"robuq_uniform,{change}/W1.58A2")) is None


def test_bits_are_checked_layer_by_layer(latent_card, replaced):
    card = latent_card("robuq_uniform/W1.58A2", mixed=True)
    assert unsupported(card) is None
    assert "6-bit activations in blocks.1.fc1" in unsupported(replaced(card, "bits", card.bits | {"blocks.1.fc1": 6}))
    assert "different activation bits" in unsupported(replaced(card, "bits", card.bits | {"blocks.1.adaln": 3}))


def test_a_width_without_a_rotation_kernel_is_named(card):
    """The small model of other tests is 48 wide."""
    assert "layers 48 wide: " in unsupported(card("robuq/W1.58A2"))


@pytest.mark.parametrize("kind", ["full", "block-128"])
@pytest.mark.parametrize("width", WIDTHS)
def test_rotation_is_the_one_weights_were_trained_with(width, kind):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(3, width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator, dtype=torch.int8) * 2 - 1
    mine = rotate_quantize_reference(x, kernel_rotation(width, kind, signs), 2, dtype=torch.float64)["rotated"]
    expected = rotate((x * signs).double(), block_width(width, kind))
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)  # its norm is a float32


def test_widths_that_cannot_be_rotated(refused):
    refused(lambda: kernel_rotation(48, "full"), "not supported")
    with pytest.raises(BenchError):
        kernel_rotation(9 * 13, "full")
