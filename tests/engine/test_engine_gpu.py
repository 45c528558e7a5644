"""The kernels on a GPU: integers against int64, epilogues against float64, codes against torch in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq_bench.engine.kernels import (
    Tile,
    block_rotation,
    choose_tile,
    full_rotation,
    gemm,
    jit,
    pack_activation,
    pack_down,
    pack_weight,
    rotate_quantize,
)
from robuq_bench.engine.kernels.packing import unpack_activation
from robuq_bench.engine.kernels.reference import gemm_reference, integer_product, rotate_quantize_reference
from robuq_bench.errors import BenchError
from robuq_bench.quant.hadamard import signs_matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

WIDTHS = [96, 128, 384, 768, 1024, 1152, 1536, 3072, 4096, 4608]


def tiles(m: int, n: int, k: int) -> list[Tile]:
    """The tiles that the portable and, where there is one, the Hopper kernel would take."""
    k = -(-k // 128) * 128
    shared = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    archs = {"sm_80", jit.architecture()}
    return [choose_tile(arch, m, n, k, True, 132, shared) for arch in sorted(archs)]


def exact_integers(x, weight, tile: Tile) -> torch.Tensor:
    """All bits of the product, although outputs are bfloat16: what rounding took off is computed by a second launch."""
    high = gemm(x, weight, tile=tile)
    ones = torch.ones(1, weight.n, dtype=torch.bfloat16, device="cuda")
    low = gemm(x, weight, epilogue="gate", gate=ones, residual=-high, tile=tile)
    return (high.double() + low.double()).long()


def operands(m, n, k, bits, seed, *, codes=None, ternary=None):
    generator = torch.Generator("cuda").manual_seed(seed)
    random = {"device": "cuda", "generator": generator}
    codes = torch.randint(0, 2**bits, (m, k), **random) if codes is None else codes
    ternary = torch.randint(-1, 2, (n, k), **random) if ternary is None else ternary
    return codes, ternary


def check_integers(m, n, k, bits, codes, ternary):
    x = pack_activation(codes, bits, torch.ones(m, device="cuda"), shift=0.0)
    weight = pack_weight(ternary, torch.ones(n, device="cuda"))
    for tile in tiles(m, n, k):
        assert torch.equal(exact_integers(x, weight, tile), integer_product(codes, ternary)), tile


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_integers_equal_int64_at_every_width(k, bits):
    check_integers(333, 200, k, bits, *operands(333, 200, k, bits, k + bits))


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 700), n=st.integers(1, 700), bits=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_integers_equal_int64_at_random_shapes(m, n, bits, seed):
    check_integers(m, n, 384, bits, *operands(m, n, 384, bits, seed))


@pytest.mark.parametrize("value", [-1, 1])
@pytest.mark.parametrize("bits", [1, 4])
def test_integers_of_extreme_codes(value, bits):
    codes = torch.full((130, 4608), 2**bits - 1, device="cuda")
    ternary = torch.full((72, 4608), value, device="cuda")
    check_integers(130, 72, 4608, bits, codes, ternary)


def test_many_tiles_and_runs_share_one_block():
    check_integers(5000, 3456, 128, 2, *operands(5000, 3456, 128, 2, 5))


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate"])
@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 1152, 1152), (333, 203, 1536), (64, 8, 96)])
def test_epilogues_agree_with_float64_and_overwrite_everything(m, n, k, rank, epilogue):
    codes, ternary = operands(m, n, k, 3, 7)
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(8)}
    step, alpha = torch.rand(m, **random) / 10, torch.rand(n, **random) / 10
    up, down = (torch.randn(rows, 16, **random) if rank else None for rows in (n, m))
    x = pack_activation(codes, 3, step, offset=torch.randn(m, **random) / 50, down=down)
    weight = pack_weight(ternary, alpha, torch.randn(n, **random), up)
    images = 3 if m % 3 == 0 else 2
    given_ = {}
    if epilogue == "gate":
        given_ = {
            "gate": torch.randn(images, n, **random).bfloat16(),
            "residual": torch.randn(m, n, **random).bfloat16(),
        }
    expected = gemm_reference(x, weight, epilogue, **given_)
    for tile in tiles(m, n, k):
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
        assert gemm(x, weight, epilogue=epilogue, out=out, tile=tile, **given_) is out
        # One rounding to bfloat16 is at most 2^-8 relative; 2e-3 absolute covers tanh.approx and cancellation.
        torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2e-3)


def rotation(width: int, kind: str, seed: int = 3):
    generator = torch.Generator("cuda").manual_seed(seed)
    signs = torch.randint(0, 2, (width,), device="cuda", generator=generator) * 2 - 1
    if kind == "block":
        return block_rotation(width, signs)
    order = 36 if width % 9 == 0 else 12 if width % 3 == 0 else 1
    return full_rotation(signs_matrix(order).cuda(), width, signs)


ROWWISE = [
    (64, 1152, 2, "none", {}),
    (1001, 1152, 2, "modulate", {}),
    (1000, 1152, 4, "modulate", {"center": True}),
    (33, 1152, 1, "gelu", {}),
    (77, 4608, 2, "none", {}),
    (65, 4608, 4, "gelu", {"center": True}),
    (20, 4608, 3, "modulate", {}),
    (19, 384, 1, "none", {}),
    (130, 768, 3, "modulate", {}),
    (50, 1536, 4, "none", {"levels": "midtread"}),
    (51, 3072, 2, "gelu", {}),
    (50, 1024, 4, "modulate", {}),
    (50, 4096, 2, "none", {}),
]


@pytest.mark.parametrize("kind", ["full", "block"])
@pytest.mark.parametrize(("m", "width", "bits", "pre", "options"), ROWWISE)
def test_rowwise_codes_agree_with_torch(m, width, bits, pre, options, kind):
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(m)}
    x = (torch.randn(m, width, **random) * 2 + 0.3).bfloat16()
    images = 2 if m % 2 == 0 else 1
    modulation = tuple(torch.randn(images, width, **random).bfloat16() for _ in range(2)) if pre == "modulate" else None
    down, turn = torch.randn(16, width, **random).bfloat16(), rotation(width, kind)
    same = {"pre": pre, "modulation": modulation} | options
    packed = rotate_quantize(x, turn, bits, down=pack_down(down), **same)
    expected = rotate_quantize_reference(x, turn, bits, **same)
    codes = unpack_activation(packed)
    off = (codes - expected["codes"]).abs()
    assert off.max() <= 1 and (off > 0).double().mean() <= 1e-4  # ties within the rounding of float32
    edges = (expected["cells"] - expected["cells"].round()).abs()
    assert (edges[off > 0] < 1e-3).all()
    assert torch.equal(packed.code_sum.long(), codes.sum(-1))
    torch.testing.assert_close(packed.step, expected["step"], rtol=1e-5, atol=0)
    if options.get("center"):
        torch.testing.assert_close(packed.offset, expected["offset"], rtol=1e-5, atol=1e-5)
    low = expected["rotated"].double() @ down.double().T
    assert (packed.down.double() - low).norm() / low.norm() < 4e-3  # token and result are both rounded to bfloat16
    plain = rotate_quantize(x, turn, bits, **same)
    assert plain.down is None and torch.equal(unpack_activation(plain), codes)


def test_a_token_of_zeros_has_finite_levels():
    x = torch.zeros(3, 1152, dtype=torch.bfloat16, device="cuda")
    packed = rotate_quantize(x, rotation(1152, "full"), 2)
    assert (unpack_activation(packed) == 2).all() and (packed.step <= 1e-12).all()


def test_quantised_layer_end_to_end():
    """Row-wise kernel and GEMM together equal the dequantised float64 product of the reference codes."""
    m, n, k = 300, 400, 1152
    x, turn = torch.randn(m, k, device="cuda").bfloat16(), rotation(k, "full")
    ternary = torch.randint(-1, 2, (n, k), device="cuda")
    up, down = torch.randn(n, 16, device="cuda"), torch.randn(16, k, device="cuda").bfloat16()
    packed = rotate_quantize(x, turn, 2, down=pack_down(down))
    weight = pack_weight(ternary, torch.full((n,), 0.03, device="cuda"), None, up)
    out = gemm(packed, weight)
    assert ((out.double() - gemm_reference(packed, weight)).norm() / out.double().norm()) < 3e-3


def test_launches_follow_the_current_stream_and_graphs():
    codes, ternary = operands(128, 128, 128, 2, 1)
    x = pack_activation(codes, 2, torch.ones(128, device="cuda"))
    weight = pack_weight(ternary, torch.ones(128, device="cuda"))
    expected = gemm(x, weight)
    out, graph = torch.zeros_like(expected), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gemm(x, weight, out=out)
    assert not out.any()
    graph.replay()
    assert torch.equal(out, expected)


def test_operands_that_do_not_fit_are_refused():
    codes, ternary = operands(64, 64, 128, 2, 1)
    x = pack_activation(codes, 2, torch.ones(64, device="cuda"))
    weight = pack_weight(ternary, torch.ones(64, device="cuda"))
    with pytest.raises(BenchError, match="do not fit"):
        gemm(x, pack_weight(torch.zeros(64, 256, device="cuda"), torch.ones(64, device="cuda")))
    with pytest.raises(BenchError, match="epilogue"):
        gemm(x, weight, epilogue="relu")
    with pytest.raises(BenchError, match="gate"):
        gemm(x, weight, epilogue="gate")
    with pytest.raises(BenchError, match="bfloat16"):
        gemm(x, weight, out=torch.empty(64, 64, device="cuda"))
    with pytest.raises(BenchError, match="low-rank"):
        gemm(x, pack_weight(ternary, torch.ones(64, device="cuda"), up=torch.zeros(64, 16, device="cuda")))
    with pytest.raises(BenchError, match="bfloat16"):
        rotate_quantize(torch.zeros(4, 1152, device="cuda"), rotation(1152, "full"), 2)
    with pytest.raises(BenchError, match="not supported"):
        rotate_quantize(torch.zeros(4, 1152, device="cuda").bfloat16(), rotation(1152, "full"), 5)
