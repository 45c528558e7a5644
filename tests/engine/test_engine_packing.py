"""Packing and the bit-serial identity on the CPU: the plain counterpart of every layout decision of the kernels."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq_bench.engine.kernels import packing, reference
from robuq_bench.errors import BenchError

shapes = st.tuples(st.integers(1, 150), st.integers(1, 140), st.integers(1, 12).map(lambda units: 32 * units))


def random_codes(m: int, k: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, (m, k), generator=torch.Generator().manual_seed(seed))


def random_ternary(n: int, k: int, seed: int) -> torch.Tensor:
    return torch.randint(-1, 2, (n, k), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, bits=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_bit_serial_product_equals_the_int64_oracle(shape, bits, seed):
    m, n, k = shape
    codes, ternary = random_codes(m, k, bits, seed), random_ternary(n, k, seed + 1)
    x = packing.pack_activation(codes, bits, torch.ones(m))
    weight = packing.pack_weight(ternary, torch.ones(n))
    assert torch.equal(packing.unpack_activation(x), codes)
    assert torch.equal(packing.unpack_weight(weight), ternary)
    assert torch.equal(reference.bit_serial_product(x, weight), reference.integer_product(codes, ternary))


@pytest.mark.parametrize("code", [0, 15])
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_extreme_codes_and_weights(code, value):
    codes, ternary = torch.full((65, 4608), code), torch.full((3, 4608), value)
    x, weight = packing.pack_activation(codes, 4, torch.ones(65)), packing.pack_weight(ternary, torch.ones(3))
    assert (reference.bit_serial_product(x, weight) == 4608 * code * value).all()


@given(words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_bits_round_trip(words):
    words = torch.tensor(words, dtype=torch.int32)
    assert torch.equal(packing.pack_bits(packing.unpack_bits(words)), words)


def test_padding_adds_nothing_to_any_popcount():
    weight = packing.pack_weight(random_ternary(5, 96, 0), torch.ones(5))
    words = weight.planes.permute(2, 0, 3, 1, 4).reshape(2, 128, 4)
    assert not packing.unpack_bits(words)[:, :, 96:].any()


def test_channel_order_gives_each_thread_eight_neighbours():
    order = packing.channel_order(64)
    assert sorted(order.tolist()) == list(range(64))
    for t in range(4):  # the accumulators of lane t: rows 2 t and 2 t + 1 of four n8 tiles
        held = [order[8 * j + 2 * t + e].item() for j in range(4) for e in range(2)]
        assert held == list(range(8 * t, 8 * t + 8))


def test_up_projection_round_trip():
    up = torch.randn(70, 16).bfloat16()
    weight = packing.pack_weight(random_ternary(70, 64, 1), torch.ones(70), up=up)
    assert torch.equal(reference.unpack_up(weight), up)


@pytest.mark.parametrize("m", [1, 64, 333])
def test_sums_lie_as_the_tensor_cores_leave_them(m):
    """mma's layout of 16 ranks x 8 tokens: lane (g, t) has rows g and g + 8, columns 2 t and 2 t + 1."""
    values = torch.randint(-(2**31), 2**31 - 1, (m, 16), dtype=torch.int32)
    sums = packing.pack_sums(values)
    assert sums.shape == packing.empty_sums(m, torch.device("cpu")).shape and sums.is_contiguous()
    assert torch.equal(packing.unpack_sums(sums, m), values)
    for token, rank in ((0, 0), (m - 1, 13)):
        g, t = rank % 8, token % 8 // 2
        assert sums[token // 16, token % 16 // 8 * 4 + rank // 8 * 2 + token % 2, 8 * t + g] == values[token, rank]


def test_signs_of_the_next_layer_and_sums_in_the_reference():
    flips = torch.where(torch.rand(128) < 0.5, -(2**15), 0).to(torch.int16)
    x = packing.pack_activation(random_codes(5, 64, 2, 1), 2, torch.ones(5))
    plain = packing.pack_weight(random_ternary(128, 64, 2), torch.ones(128))
    signed = packing.pack_weight(random_ternary(128, 64, 2), torch.ones(128), next_flips=flips)
    expected = reference.gemm_reference(x, plain) * torch.where(flips < 0, -1, 1)
    assert torch.equal(reference.gemm_reference(x, signed), expected)
    low = torch.randint(-(2**20), 2**20, (5, 16), dtype=torch.int32)
    fed, given = (
        packing.pack_activation(random_codes(5, 64, 2, 1), 2, torch.ones(5), down=low.to(torch.bfloat16)) for _ in "ab"
    )
    fed = dataclasses.replace(fed, down=packing.pack_sums(low))
    branch = packing.pack_weight(random_ternary(9, 64, 4), torch.ones(9), up=torch.randn(9, 16))
    assert torch.equal(reference.gemm_reference(fed, branch), reference.gemm_reference(given, branch))


def test_reference_equals_the_dequantised_product():
    m, n, k = 7, 9, 64
    codes, ternary = random_codes(m, k, 2, 3), random_ternary(n, k, 4)
    step, offset, alpha = torch.rand(m) + 0.1, torch.randn(m), torch.rand(n) + 0.1
    bias, up, down = torch.randn(n), torch.randn(n, 16).bfloat16(), torch.randn(m, 16).bfloat16()
    x = packing.pack_activation(codes, 2, step, offset=offset, down=down)
    weight = packing.pack_weight(ternary, alpha, bias, up)
    levels = step[:, None].double() * (codes - 1.5) + offset[:, None].double()
    expected = levels @ (alpha[:, None].double() * ternary).T + bias + down.double() @ up.double().T
    torch.testing.assert_close(reference.gemm_reference(x, weight), expected)


def test_a_next_layer_of_another_width_is_refused():
    flips = torch.zeros(256, dtype=torch.int16)
    for n in (128, 256 + 32):
        with pytest.raises(BenchError, match="256 channels"):
            packing.pack_weight(random_ternary(n, 64, 1), torch.ones(n), next_flips=flips)


def test_mistakes_are_named():
    with pytest.raises(BenchError, match="multiple of 32"):
        packing.pack_weight(torch.zeros(4, 40), torch.ones(4))
    with pytest.raises(BenchError, match="-1, 0 and \\+1"):
        packing.pack_weight(torch.full((4, 32), 2), torch.ones(4))
    with pytest.raises(BenchError, match="low-rank"):
        packing.pack_weight(torch.zeros(4, 32), torch.ones(4), up=torch.zeros(4, 8))
    with pytest.raises(BenchError, match=r"0 \.\. 3"):
        packing.pack_activation(torch.full((2, 32), 4), 2, torch.ones(2))
    with pytest.raises(BenchError, match="1 to 4 bits"):
        packing.pack_activation(torch.zeros(2, 32), 5, torch.ones(2))


def test_weights_lie_in_slabs_of_128_channels():
    ternary = torch.zeros(200, 384, dtype=torch.int64)
    ternary[170, 293] = 1
    planes = packing.pack_weight(ternary, torch.ones(200)).planes
    assert tuple(planes.shape) == (2, 3, 2, 128, 4)
    row = packing.channel_order(256).tolist().index(170) - 128
    plane_p = planes[:, :, 0].clone()
    assert plane_p[1, 293 // 128, row, 293 % 128 // 32] == 1 << 293 % 32
    plane_p[1, 293 // 128, row, 293 % 128 // 32] = 0
    assert not plane_p.any()
