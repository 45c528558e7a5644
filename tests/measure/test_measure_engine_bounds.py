"""Bounds by hand: operations and bytes of each kernel, and which of the two binds."""

import pytest

from robuq_bench.measure import engine_bounds as bounds
from robuq_bench.measure.engine_records import Hardware, Rate, Rates


def rates(copy: float = 1e12, **speeds: float) -> Rates:
    names = {"name": "Test GPU", "capability": "9.0", "multiprocessors": 1, "l2_bytes": 1, "memory_bytes": 1}
    nothing = dict.fromkeys(
        ("driver", "triton", "max_sm_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w")
    )
    found = [Rate(unit=unit, instruction="x", ops_per_s=speed) for unit, speed in speeds.items()]
    found.append(Rate(unit="b1", instruction="other", reason="not on this GPU"))
    hardware = Hardware(**names, **nothing, cuda="13.0", torch="2.11")
    return Rates(rates=tuple(found), copy_bytes_per_s=copy, hardware=hardware, provenance={})


def test_a_ternary_product_counts_two_planes_a_bit():
    bound = bounds.ternary_product(64, 128, 256, 3, 0, rates(b1=1e12, bf16=1e12))
    assert bound.ops == 2 * 64 * 128 * 256 * 3 * 2
    tokens = 64 * (3 * 256 // 8 + 4 + 4 + 16 * 2)  # planes, step, code sum, down-projection in bf16
    channels = 128 * (2 * 256 // 8 + 3 * 4 + 16 * 2)  # planes, alpha, weight sum and bias, up-projection
    assert bound.bytes == tokens + channels + 64 * 128 * 2
    assert bound.arithmetic_us == pytest.approx(2 * 64 * 128 * 256 * 6 / 1e12 * 1e6)
    assert bound.bytes_us == pytest.approx(bound.bytes / 1e12 * 1e6)


def test_a_gate_reads_residual_and_gate():
    plain, gated = (bounds.ternary_product(512, 128, 256, 2, images, rates(b1=1e12)) for images in (0, 2))
    assert gated.bytes - plain.bytes == 2 * 512 * 128 + 2 * 2 * 128


def test_what_a_product_does_for_the_next_layer_and_takes_from_the_one_before():
    """Sums of 16 ranks, 32 bits each; flips and matrix of each channel; the branch's product once more."""
    plain, feeds, fed = (
        bounds.ternary_product(512, 128, 256, 2, 0, rates(b1=1e15, bf16=1e9), **more)
        for more in ({}, {"feeds": True}, {"fed": True})
    )
    assert feeds.bytes - plain.bytes == 512 * 64 + 128 * (2 + 32) and fed.bytes - plain.bytes == 512 * 32
    assert feeds.arithmetic_us == pytest.approx(2 * plain.arithmetic_us) and fed.arithmetic_us == plain.arithmetic_us


def test_a_library_product_counts_its_own_elements():
    assert bounds.library_product(2, 3, 5, "bf16", rates(bf16=1e12)).bytes == 2 * (10 + 15) + 2 * 6
    assert bounds.library_product(2, 3, 5, "e4m3", rates(e4m3=1e12)).bytes == (10 + 15) + 2 * 6
    assert bounds.library_product(2, 3, 5, "s8", rates(s8=1e12)).ops == 2 * 2 * 3 * 5


def test_row_wise_counts_bytes_alone():
    bound = bounds.row_wise(10, 128, 2, 0, False, rates())
    assert bound.bytes == 10 * (256 + 32 + 8) and bound.arithmetic_us is None and bound.by == "bytes"
    more = bounds.row_wise(10, 128, 2, 3, True, rates())
    assert more.bytes - bound.bytes == 2 * 3 * 128 * 2 + 16 * 2 * (10 + 128)
    assert bounds.copy(10, 128, rates()).bytes == 4 * 1280


def test_the_slower_of_the_two_binds():
    slow_unit = bounds.library_product(64, 64, 64, "bf16", rates(copy=1e15, bf16=1e9))
    assert slow_unit.by == "arithmetic" and slow_unit.us == slow_unit.arithmetic_us > slow_unit.bytes_us
    slow_copy = bounds.library_product(64, 64, 64, "bf16", rates(copy=1e6, bf16=1e15))
    assert slow_copy.by == "bytes" and slow_copy.us == slow_copy.bytes_us > slow_copy.arithmetic_us


def test_the_branch_binds_where_its_unit_is_slow():
    bound = bounds.ternary_product(64, 128, 256, 1, 0, rates(b1=1e15, bf16=1e9))
    assert bound.arithmetic_us == pytest.approx(2 * 64 * 128 * 16 / 1e9 * 1e6)


def test_an_unknown_rate_leaves_the_bytes():
    bound = bounds.ternary_product(64, 128, 256, 1, 0, rates(bf16=1e9))
    assert bound.arithmetic_us is None and bound.by == "bytes"
    assert rates(bf16=1e9).best("b1") is None
