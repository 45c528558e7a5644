"""Rotations as the row-wise kernel applies them, and the down-projection turned back through one."""

import pytest
import torch

from robuq_bench.engine.kernels import block_rotation, full_rotation, pack_down, pack_next, reference
from robuq_bench.engine.kernels.packing import unpack_bits
from robuq_bench.errors import BenchError
from robuq_bench.quant import hadamard


def rotation(width: int, kind: str):
    signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(width)) * 2 - 1
    if kind == "block":
        return block_rotation(width, signs)
    order = 36 if width % 9 == 0 else 12 if width % 3 == 0 else 1
    return full_rotation(hadamard.signs_matrix(order), width, signs)


@pytest.mark.parametrize("kind", ["full", "block"])
@pytest.mark.parametrize("width", [384, 768, 1024, 1152, 1536, 3072, 4096, 4608])
def test_the_kernels_rotation_is_the_packages(width, kind):
    turn = rotation(width, kind)
    x, signs = torch.randn(3, width).bfloat16(), 1 - 2 * unpack_bits(turn.signs).double()
    rotated = reference.rotate_quantize_reference(x, turn, 2, dtype=torch.float64)["rotated"]
    expected = hadamard.rotate(x.double() * signs, hadamard.block_width(width, kind))
    torch.testing.assert_close(rotated, expected, atol=1e-6, rtol=1e-6)


def test_flips_and_signs_say_the_same():
    turn = rotation(384, "full")
    assert torch.equal(turn.flips < 0, unpack_bits(turn.signs)) and set(turn.flips.tolist()) == {0, -(2**15)}


@pytest.mark.parametrize("kind", ["full", "block"])
@pytest.mark.parametrize("width", [384, 1152, 4608])
def test_down_projection_of_plain_tokens_is_that_of_rotated_ones(width, kind):
    """Multiply the fragments as mma does: lane (g, t) has ranks g, g + 8 and a run of eight channels of 32 in two."""
    turn = rotation(width, kind)
    x, down = torch.randn(5, width).bfloat16(), torch.randn(16, width)
    packed = pack_down(down, turn).view(torch.bfloat16).double().reshape(-1, 2, 8, 4, 2, 2, 2)
    steps = packed.permute(5, 2, 0, 3, 1, 4, 6)  # rank half, g; 32 channels, t, half of eight, pair, element
    matrix = steps.reshape(16, width)
    flipped = torch.where(turn.flips < 0, -x.double(), x.double())
    low = reference.rotate_quantize_reference(x, turn, 2, dtype=torch.float64)["rotated"] @ down.double().T
    assert (flipped @ matrix.T - low).norm() / low.norm() < 2**-8  # the one rounding to bfloat16


@pytest.mark.parametrize("width", [384, 4608])
def test_the_next_layers_down_projection_in_integers(width):
    """Scaled by powers of two to just below the bound, zeros left alone; the same numbers as `pack_down`'s else."""
    turn, down = rotation(width, "full"), torch.randn(16, width) * torch.logspace(-3, 3, 16)[:, None]
    down[5] = 0
    packed, scale = pack_next(down, turn)
    assert torch.equal(scale.log2(), scale.log2().round()) and scale[5] == 1
    unit = torch.eye(width, dtype=torch.float64)
    matrix = reference.sums_reference(unit, packed).T  # [16, width]
    assert torch.equal(matrix, reference.sums_reference(unit, pack_down(down, turn)).T * scale[:, None])
    most = matrix.abs().sum(-1)
    assert most[5] == 0 and (most > 2**20.99).sum() == 15 and (most < 2**22.01).all()


def test_tokens_that_have_their_signs():
    turn, x = rotation(384, "full"), torch.randn(3, 384).bfloat16()
    signed = torch.where(turn.flips < 0, -x, x)
    plain, same = (
        reference.rotate_quantize_reference(tokens, by, 2)["cells"]
        for tokens, by in ((x, turn), (signed, turn.of_signed()))
    )
    assert torch.equal(plain, same) and turn.signed and not turn.of_signed().signed
    assert not full_rotation(hadamard.signs_matrix(12), 384).signed


def test_rotations_and_factors_that_do_not_fit_are_refused():
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(12), 96)
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(36), 1280)
    with pytest.raises(BenchError, match="not supported"):
        full_rotation(hadamard.signs_matrix(36), 9216)
    with pytest.raises(BenchError, match="not supported"):
        block_rotation(200)
    for pack in (pack_down, pack_next):
        with pytest.raises(BenchError, match="16"):
            pack(torch.zeros(8, 384), rotation(384, "full"))
        with pytest.raises(BenchError, match="384"):
            pack(torch.zeros(16, 768), rotation(384, "full"))
