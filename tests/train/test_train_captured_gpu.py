"""The captured training step on a GPU takes the plain step's path: losses, weights, averages, phases, resumption."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from robuq_bench.config.preset import DiT, Training
from robuq_bench.errors import Diverged
from robuq_bench.models.dit import Shape
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train import captured, loop
from robuq_bench.train.captured import WARMUP, Captured
from robuq_bench.train.loop import train
from robuq_bench.train.state import State
from robuq_bench.train.update import Update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROWS = ["full_precision/W32A32", "robuq_uniform/W1.58A2", "quest_stable/W3A3", "quest_selective/W4A4"]


def plan(**changes) -> Training:
    defaults = {"steps": 24, "batch": 16, "threads": 1, "lr": 1e-3, "warmup": 3, "ema": 0.9, "save_every": 9}
    return Training(**defaults | {"precision": "bfloat16"} | changes)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(64, 3, 16, 16, generator=generator) * 2 - 1, torch.arange(64) % 10


@pytest.fixture
def model(denoiser, variant):
    def make(row: str) -> nn.Module:
        made = denoiser(0, DiT(width=128, depth=2, heads=2, patch=2), Shape(16, 3, 10))
        return convert(made, variant(row), uniform_bits(made, variant(row)), 0).cuda()

    return make


def outcome(made: nn.Module, data, variant, row: str, folder, **changes) -> loop.Outcome:
    own = plan(**changes)
    return train(made, *data, 10, own, 0, State(folder, "x"), device="cuda", phases=variant(row).method.phases)


def distance(one: dict, other: dict) -> float:
    pairs = [(one[name].float(), other[name].float()) for name in one]
    return max(((a - b).norm() / (b.norm() + 1e-3)).item() for a, b in pairs)


@pytest.mark.parametrize("row", ROWS)
def test_captured_and_plain_runs_agree(model, data, variant, row, tmp_path, monkeypatch, caplog):
    """In all of 24 steps, most of them replayed; phases record anew. Atomic sums leave rounding between two runs."""
    with caplog.at_level(logging.WARNING):
        found = outcome(model(row), data, variant, row, tmp_path / "captured")
    assert "cannot be recorded" not in caplog.text
    monkeypatch.setattr(loop, "Captured", lambda update: update)
    expected = outcome(model(row), data, variant, row, tmp_path / "plain")
    assert found.losses == pytest.approx(expected.losses, rel=0.02)
    assert distance(found.weights, expected.weights) < 0.02


def moved(found: dict[str, torch.Tensor], start: nn.Module) -> torch.Tensor:
    """How far training has moved the weights [n], biases of keys left out.

    Those shift all scores of a query alike, so that their gradient is rounding alone, which AdamW makes whole steps of.
    """
    changes = {name: found[name] - p.detach() for name, p in start.named_parameters()}
    for name in changes:
        if name.endswith("to_qkv.bias"):
            changes[name] = changes[name].view(3, -1)[[0, 2]]
    return torch.cat([change.flatten() for change in changes.values()])


@pytest.mark.parametrize("row", ["full_precision/W32A32", "robuq_uniform/W1.58A2"])
def test_fused_and_plain_blocks_train_alike(model, data, variant, row, tmp_path, monkeypatch):
    """Fused blocks are as near to training in float32 as plain ones are in bfloat16."""
    fused = outcome(model(row), data, variant, row, tmp_path / "fused", steps=8)
    exact = outcome(model(row), data, variant, row, tmp_path / "exact", steps=8, precision="float32")
    monkeypatch.setattr(loop, "quick", lambda *_: nullcontext())
    plain = outcome(model(row), data, variant, row, tmp_path / "plain", steps=8)
    assert fused.losses == pytest.approx(exact.losses, rel=0.02)
    own, same, right = (moved(found.weights, model(row)) for found in (fused, plain, exact))
    assert (own - right).norm() < 1.3 * (same - right).norm() < 0.3 * right.norm()


def test_replays_follow_learning_rate_and_average(model, data):
    """A rate of zero leaves the weights where they are, a share of one makes the average equal to them."""
    made = model("full_precision/W32A32").train()
    update = Update(made, plan())
    run = Captured(update)
    signal, labels = (part.cuda() for part in data)
    for step in range(WARMUP + 2):
        run.prepare(step, 1e-3)
        run(loop.draw(signal, labels, 16, 10, 0.1, step))
    assert run.graph is not None
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    run.prepare(0, 0.0)
    update.average.share.fill_(1.0)
    first = run(loop.draw(signal, labels, 16, 10, 0.1, 100))
    assert distance(before, dict(made.named_parameters())) == 0 == distance(before, update.average.weights)
    second = run(loop.draw(signal, labels, 16, 10, 0.1, 101))
    assert first.item() != second.item(), "a loss that was returned is not overwritten"
    run.prepare(0, 1e-2)
    run(loop.draw(signal, labels, 16, 10, 0.1, 100))
    assert distance(before, dict(made.named_parameters())) > 0


def test_a_cut_run_goes_on(model, data, variant, tmp_path, monkeypatch):
    row = "robuq_uniform/W1.58A2"
    whole = outcome(model(row), data, variant, row, tmp_path / "whole")
    drawn = loop.draw

    def stops(*arguments):
        stops.left -= 1
        if stops.left < 0:
            raise KeyboardInterrupt
        return drawn(*arguments)

    stops.left = 12
    monkeypatch.setattr(loop, "draw", stops)
    with pytest.raises(KeyboardInterrupt):
        outcome(model(row), data, variant, row, tmp_path / "cut")
    stops.left = 24 - 9
    resumed = outcome(model(row), data, variant, row, tmp_path / "cut")
    assert stops.left == 0 and resumed.losses == pytest.approx(whole.losses, rel=0.02)
    assert distance(resumed.weights, whole.weights) < 0.02


def test_a_step_that_cannot_be_recorded_is_issued_plainly_and_says_so(
    model, data, variant, tmp_path, monkeypatch, caplog
):
    row = "full_precision/W32A32"
    plain = captured.Update.__call__

    def reads_back(self, batch):
        value = plain(self, batch)
        value.item()
        return value

    monkeypatch.setattr(captured.Update, "__call__", reads_back)
    with caplog.at_level(logging.WARNING):
        found = outcome(model(row), data, variant, row, tmp_path, steps=8)
    assert caplog.text.count("cannot be recorded as a CUDA graph") == 1 and len(found.losses) == 8


def test_divergence_is_seen_in_replays(model, data, variant, tmp_path):
    with pytest.raises(Diverged, match=r"loss is (nan|inf) at step"):
        outcome(model("full_precision/W32A32"), data, variant, "full_precision/W32A32", tmp_path, lr=1e30)
