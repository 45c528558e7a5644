"""Packing of the adaLN linears, on the CPU."""

import pytest
import torch

from robuq_bench.engine.kernels import AdalnLayer, adaln, block_rotation, pack_adaln, packing
from robuq_bench.errors import BenchError


def layer(n: int, k: int, seed: int, rank: bool = True) -> AdalnLayer:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (k,), generator=generator) * 2 - 1
    ternary = torch.randint(-1, 2, (n, k), generator=generator)
    alpha, bias = (torch.rand(n, generator=generator) for _ in range(2))
    branch = [torch.randn(*shape, generator=generator) if rank else None for shape in ((n, 16), (16, k))]
    return AdalnLayer(block_rotation(k, signs), ternary, alpha, bias, *branch)


def test_a_record_holds_all_there_is_to_know_of_its_channels():
    layers = [layer(192, 256, seed) for seed in (0, 1)]
    stack = pack_adaln(layers)
    order = adaln.row_order(192)[64:128]
    assert sorted(order.tolist()) == list(range(64, 128))
    record = stack.records[1, 1]
    planes, rest = record[: 2 * 2048].view(torch.int32).reshape(2, 2, 64, 4), record[2 * 2048 :]
    p, q = packing.unpack_bits(planes.permute(1, 2, 0, 3).reshape(2, 64, 8)).long()
    assert torch.equal(p + q - 1, layers[1].ternary[order])
    alpha, sums, bias = rest[:768].view(torch.float32).reshape(3, 64)
    assert torch.equal(alpha, layers[1].alpha[64:128]) and torch.equal(bias, layers[1].bias[64:128])
    assert torch.equal(sums, layers[1].ternary[64:128].sum(-1).float())
    assert torch.equal(rest[768:].view(torch.bfloat16).reshape(64, 16), layers[1].up[order].bfloat16())
    assert torch.equal(stack.signs[1], layers[1].rotation.signs)
    assert torch.equal(stack.down[1], layers[1].down.T.bfloat16())


def test_a_thread_ends_with_two_neighbouring_channels():
    order = adaln.row_order(32)
    assert all(order[row + 8] == order[row] + 1 for start in (0, 16) for row in range(start, start + 8))


def test_memory_is_two_bits_a_weight_and_the_rest():
    stack = pack_adaln([layer(384, 128, 0, rank=False)])
    assert stack.records.numel() == 384 * 128 // 4 + 384 * 12 and stack.down is None


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "no adaLN layers"),
        ([layer(96, 128, 0)], {}, "multiple of 64"),
        ([layer(64, 128, 0), layer(128, 128, 0)], {}, "one shape"),
        ([layer(64, 128, 0), layer(64, 128, 0, rank=False)], {}, "low-rank"),
        ([layer(64, 128, 0)], {"bits": 5}, "not supported"),
        ([layer(64, 128, 0)], {"levels": "lloyd_max"}, "not supported"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, options, message):
    with pytest.raises(BenchError, match=message):
        pack_adaln(layers, **options)


def test_weights_that_are_not_ternary_are_refused():
    wrong = layer(64, 128, 0)
    wrong.ternary[3, 5] = 2
    with pytest.raises(BenchError, match="-1, 0 and"):
        pack_adaln([wrong])


def test_no_more_records_in_flight_than_there_are():
    """28 layers of 108 records on 132 multiprocessors: one layer gives a block one; a part takes every second."""
    assert adaln.rings(28 * 108, 2, 21_248, 132, 230_000) == (2, 4)
    assert adaln.rings(27 * 108, 2, 21_248, 44, 114_000) == (2, 2)  # with half of the shared memory
    assert adaln.rings(108, 2, 21_248, 132, 230_000) == (2, 1)
    assert adaln.rings(108, 9, 21_248, 132, 230_000) == (4, 1)
    with pytest.raises(BenchError, match="do not fit into 40000 bytes"):
        adaln.rings(108, 2, 21_248, 132, 40_000)
