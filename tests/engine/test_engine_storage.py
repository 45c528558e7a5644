"""Integer codes as bytes: exact both ways, as small as stated, damage refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robuq_bench.engine.storage import pack, unpack

LEVELS = st.sampled_from([2, 3, 4, 8, 16, 256])


@st.composite
def codes(draw) -> tuple[int, np.ndarray]:
    levels = draw(LEVELS)
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=13))
    return levels, draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, levels - 1)))


@given(codes())
def test_round_trip(given_codes):
    levels, array = given_codes
    packed = pack(array, levels)
    restored = unpack(packed, levels, array.shape, "x")
    assert packed.dtype == np.uint8 and packed.ndim == 1
    assert restored.shape == array.shape and np.array_equal(restored, array)


@given(codes())
def test_bytes_are_counted(given_codes):
    """Five trits a byte; otherwise log2(levels) planes of one bit a code."""
    levels, array = given_codes
    bits = {2: 1, 4: 2, 8: 3, 16: 4, 256: 8}
    expected = -(-array.size // 5) if levels == 3 else bits[levels] * -(-array.size // 8)
    assert len(pack(array, levels)) == expected


def test_a_trit_takes_1_6_bits():
    assert len(pack(np.zeros((4608, 1152), np.uint8), 3)) * 8 / (4608 * 1152) == pytest.approx(1.6, abs=1e-5)


def test_layout_is_fixed():
    """Files written today must be readable tomorrow: 2 + 1*3 + 0*9 + 2*27 + 1*81 = 140; planes are big-endian bits."""
    assert pack(np.array([2, 1, 0, 2, 1, 2], np.uint8), 3).tolist() == [140, 2]
    assert pack(np.array([3, 0, 1, 2], np.uint8), 4).tolist() == [0b1010_0000, 0b1001_0000]
    assert unpack(np.array([140, 2], np.uint8), 3, (2, 3), "x").tolist() == [[2, 1, 0], [2, 1, 2]]


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_length_is_refused(levels, change, refused):
    packed = pack(np.ones((7, 11), np.uint8), levels)
    damaged = np.resize(packed, len(packed) + change)
    refused(lambda: unpack(damaged, levels, (7, 11), "file: blocks.0.qkv"), "file: blocks.0.qkv", "damaged")


def test_a_byte_that_is_no_five_trits_is_refused(refused):
    packed = pack(np.ones(10, np.uint8), 3)
    packed[1] = 243
    refused(lambda: unpack(packed, 3, (10,), "x"), "damaged packed weights", "export this model again")
