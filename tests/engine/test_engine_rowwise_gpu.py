"""The row-wise kernel on a GPU: codes against torch in float32, sums exactly, whatever the shape."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq_bench.engine.kernels import block_rotation, full_rotation, gemm, pack_down, pack_weight, rotate_quantize
from robuq_bench.engine.kernels.packing import PackedActivation, unpack_activation
from robuq_bench.engine.kernels.reference import gemm_reference, rotate_quantize_reference
from robuq_bench.engine.kernels.rowwise import roundings
from robuq_bench.errors import BenchError
from robuq_bench.quant.hadamard import signs_matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ONE_IN_A_THOUSAND = 1e-3


def rotation(width: int, kind: str, seed: int = 3):
    generator = torch.Generator("cuda").manual_seed(seed)
    signs = torch.randint(0, 2, (width,), device="cuda", generator=generator) * 2 - 1
    if kind == "block":
        return block_rotation(width, signs)
    order = 36 if width % 9 == 0 else 12 if width % 3 == 0 else 1
    return full_rotation(signs_matrix(order).cuda(), width, signs)


def operands(m: int, width: int, pre: str, images: int):
    """Tokens, and (scale, shift) as slices of one wide tensor, as adaLN makes them."""
    random = {"device": "cuda", "generator": torch.Generator("cuda").manual_seed(m)}
    x = (torch.randn(m, width, **random) * 2 + 0.3).bfloat16()
    wide = torch.randn(images, 6 * width, **random).bfloat16()
    modulation = (wide[:, width : 2 * width], wide[:, 4 * width : 5 * width]) if pre == "modulate" else None
    return x, modulation, torch.randn(16, width, **random)


def poison(packed: PackedActivation) -> PackedActivation:
    for tensor in (packed.planes, packed.code_sum, packed.step, packed.offset, packed.down):
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    return packed


def check(m, width, bits, pre, kind, images=1, **options):
    x, modulation, down = operands(m, width, pre, images)
    turn = rotation(width, kind)
    same = {"pre": pre, "modulation": modulation} | options
    rounded = roundings(turn, m, x.device, pre=pre, modulation=modulation)
    expected = rotate_quantize_reference(x, turn, bits, **same, **rounded)
    factor = pack_down(down, turn, pre)
    out = poison(rotate_quantize(x, turn, bits, down=factor, **same))
    packed = rotate_quantize(x, turn, bits, down=factor, out=out, **same)
    assert packed is out
    codes = unpack_activation(packed)
    off = (codes - expected["codes"]).abs()
    assert off.max() <= 1 and (off > 0).sum() <= max(1, 1e-4 * off.numel())  # ties within the rounding of float32
    edges = (expected["cells"] - expected["cells"].round()).abs()
    # Where float32 moves what precedes from one 16-bit number to the next, a whole token moves a little.
    loose = 1 if pre == "none" else 5
    assert (edges[off > 0] < 1e-3 * loose).all()
    assert torch.equal(packed.code_sum.long(), codes.sum(-1))
    torch.testing.assert_close(packed.step, expected["step"], rtol=2e-5 * loose, atol=0)
    exact = rotate_quantize_reference(x, turn, bits, **same)  # what the roundings change, if little
    off = (codes - exact["codes"]).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < ONE_IN_A_THOUSAND * 2**bits
    torch.testing.assert_close(packed.step, exact["step"], rtol=2e-3, atol=0)
    if options.get("center"):
        torch.testing.assert_close(packed.offset, expected["offset"], rtol=1e-5, atol=1e-5 if pre == "none" else 1e-3)
    low = expected["rotated"].double() @ down.double().T
    assert (packed.down.double() - low).norm() / low.norm() < 4e-3  # factor, token and result have 16 bits
    plain = rotate_quantize(x, turn, bits, **same)
    assert plain.down is None and torch.equal(unpack_activation(plain), codes)


@pytest.mark.parametrize("kind", ["full", "block"])
@pytest.mark.parametrize(
    ("m", "width", "bits", "pre", "options"),
    [
        (64, 1152, 2, "none", {}),
        (1001, 1152, 2, "modulate", {}),
        (600, 1152, 2, "none", {}),
        (512, 1152, 2, "modulate", {"images": 4}),
        (260, 1152, 3, "modulate", {"images": 1}),
        (1000, 1152, 4, "modulate", {"center": True, "images": 2}),
        (33, 1152, 1, "gelu", {}),
        (77, 4608, 2, "none", {}),
        (65, 4608, 4, "gelu", {"center": True}),
        (600, 4608, 2, "none", {}),  # one batch of tokens a block; then more
        (2100, 4608, 2, "gelu", {}),
        (3001, 4608, 2, "none", {}),
        (4200, 4608, 4, "none", {}),
        (20, 4608, 3, "modulate", {"images": 2}),
        (7, 128, 2, "none", {}),
        (19, 384, 1, "none", {}),
        (130, 768, 3, "modulate", {"images": 10}),
        (50, 1536, 4, "none", {"levels": "midtread"}),
        (51, 3072, 2, "gelu", {}),
        (50, 1024, 4, "modulate", {}),
        (50, 4096, 2, "none", {}),
    ],
)
def test_codes_agree_with_torch(m, width, bits, pre, options, kind):
    check(m, width, bits, pre, kind, **options)


@pytest.mark.parametrize("width", [1152, 4608])
def test_many_rounds_and_images_that_begin_inside_a_round(width):
    check(6003, width, 2, "modulate", "full", images=3)


@pytest.mark.parametrize("options", [{}, {"center": True}, {"levels": "midtread"}])
@pytest.mark.parametrize(
    ("m", "width", "bits"),
    [(1, 4608, 2), (77, 4608, 1), (512, 4608, 2), (1001, 4608, 3), (3001, 4608, 4), (50, 1536, 2)],
)
def test_tokens_that_bring_their_signs(m, width, bits, options):
    """At width 4608 a kernel of its own, else the same one: every bit as without."""
    if bits == 1 and options.get("levels"):
        pytest.skip("midtread levels have 2 bits and more")
    x, _, _ = operands(m, width, "none", 1)
    turn = rotation(width, "full")
    expected = rotate_quantize(x, turn, bits, **options)
    signed = torch.where(turn.flips < 0, -x, x)
    out = poison(rotate_quantize(signed, turn.of_signed(), bits, **options))
    mine = rotate_quantize(signed, turn.of_signed(), bits, out=out, **options)
    assert torch.equal(unpack_activation(mine), unpack_activation(expected))
    assert torch.equal(mine.code_sum, expected.code_sum) and torch.equal(mine.step, expected.step)
    assert mine.offset is None or torch.equal(mine.offset, expected.offset)


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 300), bits=st.integers(1, 4))
def test_any_number_of_tokens(m, bits):
    check(m, 384, bits, "none", "full")


def test_a_token_of_zeros_has_finite_levels():
    x = torch.zeros(3, 1152, dtype=torch.bfloat16, device="cuda")
    packed = rotate_quantize(x, rotation(1152, "full"), 2)
    assert (unpack_activation(packed) == 2).all() and (packed.step <= 1e-12).all()


def test_a_broken_token_spoils_only_its_four():
    """Four tokens' last rows share a warp, where the others' rows count zero times; zero times NaN is NaN."""
    x, turn = torch.randn(40, 1152, device="cuda").bfloat16(), rotation(1152, "full")
    whole = unpack_activation(rotate_quantize(x, turn, 2))
    x[17, 100] = float("nan")
    others = torch.arange(40, device="cuda") // 4 != 17 // 4
    assert torch.equal(unpack_activation(rotate_quantize(x, turn, 2))[others], whole[others])


def test_quantised_layer_end_to_end():
    """Row-wise kernel and GEMM together equal the dequantised float64 product of the reference codes."""
    m, n, k = 300, 400, 1152
    x, turn = torch.randn(m, k, device="cuda").bfloat16(), rotation(k, "full")
    ternary = torch.randint(-1, 2, (n, k), device="cuda")
    up, down = torch.randn(n, 16, device="cuda"), torch.randn(16, k, device="cuda")
    packed = rotate_quantize(x, turn, 2, down=pack_down(down, turn))
    weight = pack_weight(ternary, torch.full((n,), 0.03, device="cuda"), None, up)
    out = gemm(packed, weight)
    assert ((out.double() - gemm_reference(packed, weight)).norm() / out.double().norm()) < 3e-3


def test_a_graph_replay_overwrites_the_same_buffers():
    x, turn = torch.randn(100, 1152, device="cuda").bfloat16(), rotation(1152, "full")
    out = rotate_quantize(x, turn, 2)
    expected, graph = unpack_activation(out), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotate_quantize(x, turn, 2, out=out)
    poison(out)
    graph.replay()
    assert torch.equal(unpack_activation(out), expected) and torch.equal(out.code_sum.long(), expected.sum(-1))


def test_operands_that_do_not_fit_are_refused():
    turn = rotation(1152, "full")
    x = torch.zeros(4, 1152, device="cuda").bfloat16()
    with pytest.raises(BenchError, match="bfloat16"):
        rotate_quantize(x.float(), turn, 2)
    with pytest.raises(BenchError, match="not supported"):
        rotate_quantize(x, turn, 5)
    with pytest.raises(BenchError, match="no tokens"):
        rotate_quantize(x[:0], turn, 2)
    with pytest.raises(BenchError, match="16 bytes"):
        rotate_quantize(torch.zeros(4 * 1152 + 1, device="cuda").bfloat16()[1:].reshape(4, 1152), turn, 2)
    with pytest.raises(BenchError, match="other sizes"):
        rotate_quantize(x, turn, 2, out=rotate_quantize(x, turn, 3))
    with pytest.raises(BenchError, match="other sizes"):
        rotate_quantize(x, turn, 2, out=replace(rotate_quantize(x, turn, 2), m=5))
    with pytest.raises(BenchError, match="down-projection"):
        rotate_quantize(x, turn, 2, down=pack_down(torch.zeros(16, 384, device="cuda"), rotation(384, "full")))
    with pytest.raises(BenchError, match="goes with"):
        rotate_quantize(x, turn, 2, modulation=(x, x))
    with pytest.raises(BenchError, match="shared out"):
        rotate_quantize(x, turn, 2, pre="modulate", modulation=(x[:3], x[:3]))
    with pytest.raises(BenchError, match="distance between rows"):
        wide = torch.zeros(4, 2304, device="cuda").bfloat16()
        rotate_quantize(x, turn, 2, pre="modulate", modulation=(x, wide[:, :1152]))


@pytest.mark.parametrize(("m", "width", "pre"), [(512, 1152, "modulate"), (66, 1152, "none"), (512, 4608, "none")])
def test_a_modulation_read_early_changes_no_bit(m, width, pre):
    x, modulation, down = operands(m, width, pre, images=2)
    turn = rotation(width, "full")
    same = {"pre": pre, "modulation": modulation, "down": pack_down(down, turn, pre)}
    expected = rotate_quantize(x, turn, 2, **same)
    torch.cuda.synchronize()  # the modulation is settled
    mine = rotate_quantize(x, turn, 2, settled=True, out=poison(rotate_quantize(x, turn, 2, **same)), **same)
    assert torch.equal(unpack_activation(mine), unpack_activation(expected))
    assert torch.equal(mine.down, expected.down) and torch.equal(mine.step, expected.step)
