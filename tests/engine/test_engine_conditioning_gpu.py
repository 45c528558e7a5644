"""The conditioning kernels on a GPU against float64, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from robuq_bench.engine.kernels.conditioning import Embedders, condition
from robuq_bench.errors import BenchError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def embedders(width, waves=256, rows=12):
    torch.manual_seed(width)
    first, second = torch.randn(width, waves) / waves**0.5, torch.randn(width, width) / width**0.5
    parts = (torch.rand(waves // 2), first, torch.randn(width), second, torch.randn(rows, width))
    return Embedders(*(part.cuda() for part in parts))


def expected(time, labels, weights):
    _, first, bias, second, embedding = (part.double() for part in vars(weights).values())
    angle = (time[:, None] * weights.frequencies).double()  # rounded as in the model
    hidden = F.silu(torch.cat([angle.cos(), angle.sin()], 1) @ first.T + bias)
    return F.silu(hidden @ second.T + embedding[labels])


@pytest.mark.parametrize(("width", "waves", "batch"), [(1152, 256, 2), (128, 256, 1), (384, 128, 9), (1024, 256, 65)])
def test_it_is_the_two_embeddings(width, waves, batch):
    weights = embedders(width, waves)
    time, labels = torch.rand(batch, device="cuda") * 1000, torch.arange(batch, device="cuda") % 11
    want = expected(time, labels, weights)
    assert (condition(time, labels, weights) - want).norm() < 1e-5 * want.norm()


def test_labels_out_of_range_take_the_last_row():
    weights = embedders(128)
    weights.embedding[-1] = torch.nan
    labels = torch.tensor([0, 11, 12, -1, 10], device="cuda")
    wrong = condition(torch.ones(5, device="cuda"), labels, weights).isnan()
    assert wrong.all(1).tolist() == wrong.any(1).tolist() == [False, True, True, True, False]


def test_what_does_not_fit_is_refused(refused):
    weights, time, labels = (
        embedders(128),
        torch.ones(2, device="cuda"),
        torch.zeros(2, dtype=torch.int64, device="cuda"),
    )
    refused(lambda: condition(time.double(), labels, weights), "float32")
    refused(lambda: condition(time, labels[:1], weights), "labels")
    odd = replace(weights, first=torch.zeros(96, 256, device="cuda"))
    refused(lambda: condition(time, labels, odd), "multiples of 128")
    with pytest.raises(BenchError):
        condition(time, labels.int(), weights)
