"""The adaLN kernels on a GPU: codes against torch in float32, integers against int64, outputs against float64."""

import pytest
import torch

from robuq_bench.engine.kernels import AdalnLayer, adaln, block_rotation, full_rotation, modulations, pack_adaln
from robuq_bench.engine.kernels.reference import integer_product, rotate_quantize_reference
from robuq_bench.errors import BenchError
from robuq_bench.quant.hadamard import signs_matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def rotation(width: int, kind: str):
    signs = torch.randint(0, 2, (width,), device="cuda") * 2 - 1
    if kind == "block":
        return block_rotation(width, signs)
    return full_rotation(signs_matrix(36 if width % 9 == 0 else 12 if width % 3 == 0 else 1).cuda(), width, signs)


def layers(count: int, n: int, k: int, kind: str, rank: bool) -> list[AdalnLayer]:
    torch.manual_seed(count * n + k)
    made = []
    for _ in range(count):
        ternary = torch.randint(-1, 2, (n, k), device="cuda")
        alpha, bias = torch.rand(n, device="cuda") / 10, torch.randn(n, device="cuda")
        branch = [torch.randn(n, 16, device="cuda"), torch.randn(16, k, device="cuda") / 30] if rank else []
        made.append(AdalnLayer(rotation(k, kind), ternary, alpha, bias, *branch))
    return made


CASES = [
    (3, 6912, 1152, "full", True, 2, {}, torch.bfloat16),
    (2, 6912, 1152, "block", False, 9, {}, torch.bfloat16),
    (2, 6912, 1152, "full", True, 5, {"center": True}, torch.float32),
    (2, 6912, 1152, "full", False, 1, {"levels": "midtread"}, torch.float32),
    (2, 2304, 384, "full", True, 17, {"bits": 3}, torch.bfloat16),
    (2, 4608, 768, "full", True, 64, {}, torch.bfloat16),
    (2, 6144, 1024, "full", True, 70, {"bits": 2}, torch.bfloat16),
    (1, 64, 128, "block", True, 3, {"bits": 1}, torch.bfloat16),
]


@pytest.mark.parametrize(("count", "n", "k", "kind", "rank", "batch", "options", "dtype"), CASES)
def test_modulations_agree_with_the_reference(count, n, k, kind, rank, batch, options, dtype):
    made = layers(count, n, k, kind, rank)
    stack = pack_adaln(made, **options)
    x = torch.randn(batch, k, device="cuda").to(dtype)
    out = torch.full((count, batch, n), float("nan"), dtype=torch.bfloat16, device="cuda")
    planes, vectors, low = adaln._launch(x, stack, out)
    codes, vectors, low = adaln.unpack_codes(planes, stack.bits, batch), vectors[:, :batch], low[:, :batch]
    same = {"center": stack.center, "levels": stack.levels}
    shift = -(2**stack.bits - 1) / 2 if stack.levels == "midrise" else -(2.0 ** (stack.bits - 1))
    for i, layer in enumerate(made):
        expected = rotate_quantize_reference(x, layer.rotation, stack.bits, **same)
        off = (codes[i] - expected["codes"]).abs()
        assert off.max() <= 1 and (off > 0).double().mean() <= 1e-4  # ties within the rounding of float32
        torch.testing.assert_close(vectors[i, :, 0], expected["step"], rtol=1e-5, atol=0)
        assert torch.equal(vectors[i, :, 2].contiguous().view(torch.int32).long(), codes[i].sum(-1))
        sums = layer.ternary.sum(-1).double()
        y = vectors[i, :, :1].double() * (integer_product(codes[i], layer.ternary).double() + shift * sums)
        if stack.center:
            y = y + vectors[i, :, 1:2].double() * sums
        y = y * layer.alpha.double() + layer.bias.double()
        if rank:
            down = expected["rotated"].double() @ layer.down.bfloat16().double().T
            assert (low[i].double() - down).norm() / down.norm() < 4e-3  # rounded to bfloat16
            y = y + low[i].double() @ layer.up.bfloat16().double().T
        torch.testing.assert_close(out[i].double(), y, rtol=2**-8, atol=2e-3)


def test_integers_equal_int64():
    """What rounding to bfloat16 took off is computed by a second launch, with the first as negative bias."""
    [layer] = layers(1, 6912, 1152, "full", False)
    n, one = len(layer.bias), torch.ones_like(layer.alpha)
    x = torch.randn(1, 1152, device="cuda").repeat(5, 1)
    high = torch.empty(1, 5, n, dtype=torch.bfloat16, device="cuda")
    stack = pack_adaln([AdalnLayer(layer.rotation, layer.ternary, one, torch.zeros_like(one))])
    planes, vectors, _ = adaln._launch(x, stack, high)
    low = modulations(x, pack_adaln([AdalnLayer(layer.rotation, layer.ternary, one, -high[0, 0].float())]))
    levels = (high.double() + low.double()) / vectors[0, 0, 0].double()
    dot = (levels + 7.5 * layer.ternary.sum(-1).double()).round().long()
    assert torch.equal(dot[0], integer_product(adaln.unpack_codes(planes, 4, 5)[0], layer.ternary))


def test_graphs_replay_and_operands_that_do_not_fit_are_refused():
    stack = pack_adaln(layers(2, 768, 128, "block", True))
    x = torch.randn(3, 128, device="cuda").bfloat16()
    expected = modulations(x, stack)
    out, graph = torch.zeros_like(expected), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        modulations(x, stack, out)
    graph.replay()
    assert torch.equal(out, expected) and expected.any()
    with pytest.raises(BenchError, match="contiguous"):
        modulations(x[:, :64], stack)
    with pytest.raises(BenchError, match="float32"):
        modulations(x.double(), stack)
    with pytest.raises(BenchError, match="out must"):
        modulations(x, stack, out[:1])
