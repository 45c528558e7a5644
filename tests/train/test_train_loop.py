"""The training loop: schedule, averaging, and going on after an interruption bit for bit."""

import math
from statistics import mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robuq_bench.config.preset import Training
from robuq_bench.errors import Diverged
from robuq_bench.models import dit
from robuq_bench.train import loop
from robuq_bench.train.loop import learning_rate, train
from robuq_bench.train.objective import draw
from robuq_bench.train.state import State
from robuq_bench.train.update import Average


def plan(**changes) -> Training:
    defaults = {"steps": 12, "batch": 8, "threads": 1, "lr": 1e-3, "warmup": 3, "ema": 0.9, "save_every": 5}
    return Training(**defaults | changes)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(64, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(64) % 10


# Learning rate


def test_learning_rate_by_hand():
    """Warm-up 0.25, 0.5, 0.75, 1; then a cosine from 1 towards 0.2, half-way at (1 + 0.2) / 2."""
    own = plan(steps=12, warmup=4, lr=1.0, final_lr=0.2)
    rates = [learning_rate(step, own) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.6)
    assert rates[6] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] > 0.2


@given(st.integers(1, 300), st.integers(0, 400), st.floats(0, 1))
def test_learning_rate_stays_between_its_ends(steps, warmup, final):
    own = plan(steps=steps, warmup=warmup, lr=2e-3, final_lr=final)
    rates = [learning_rate(step, own) for step in range(steps)]
    assert all(0 < rate <= 2e-3 * (1 + 1e-12) for rate in rates[:-1]) and rates[-1] >= 0
    assert all(rate >= 2e-3 * final * (1 - 1e-12) for rate in rates[warmup:])


# Averaging


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_average_is_the_formula(decay):
    """w <- d w + (1 - d) live with d = min(decay, (1 + step) / (10 + step))."""
    model = nn.Linear(3, 2, dtype=torch.float64)
    average, expected = Average(model, decay), model.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            model.weight += torch.randn(2, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        average.prepare(step)
        average.update()
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * model.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected, rtol=1e-12, atol=1e-12)


def test_average_is_a_copy_of_trainable_weights():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = Average(model, 0.9)
    with torch.no_grad():
        before = model.weight.clone()
        model.weight.zero_()
    assert average.weights.keys() == {"weight"} and torch.equal(average.weights["weight"], before)


# Training


def test_training_lowers_the_loss(spec, shape, data, tmp_path):
    model = dit.build(spec, shape)
    losses = train(model, *data, 10, plan(steps=60, lr=3e-3, warmup=5), 0, State(tmp_path, "x")).losses
    assert len(losses) == 60 and mean(losses[-10:]) < 0.85 * mean(losses[:5])


def test_a_run_follows_its_seed(denoiser, data, tmp_path):
    runs = [
        train(denoiser(), *data, 10, plan(steps=3), seed, State(tmp_path / str(k), "x"))
        for k, seed in enumerate((0, 0, 1))
    ]
    assert runs[0].losses == runs[1].losses != runs[2].losses
    assert same(runs[0].weights, runs[1].weights) and not same(runs[0].weights, runs[2].weights)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    """What a killed process looks like from inside."""


class StopAfter:
    """Stands in for `loop.draw`: so many batches, then the end."""

    def __init__(self, batches: int):
        self.left = batches

    def __call__(self, *arguments):
        if self.left == 0:
            raise Stop
        self.left -= 1
        return draw(*arguments)


@pytest.mark.parametrize(
    ("row", "stops"),
    [
        ("full_precision/W32A32", [7]),
        ("full_precision/W32A32", [3]),
        ("quest_stable/W3A3", [5]),
        ("robuq/W1.58A2", [7]),
        ("robuq/W1.58A2", [6, 11]),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(converted, data, tmp_path, monkeypatch, row, stops):
    """Stopped at the given steps (the last state is a few steps back), each time with fresh objects."""
    whole_model = converted(row)
    whole = train(whole_model, *data, 10, plan(), 0, State(tmp_path / "whole", "x"))
    folder = tmp_path / "cut"
    for stop in stops:
        monkeypatch.setattr(loop, "draw", StopAfter(stop - last_saved(folder)))
        with pytest.raises(Stop):
            train(converted(row), *data, 10, plan(), 0, State(folder, "x"))
    monkeypatch.setattr(loop, "draw", StopAfter(12 - last_saved(folder)))  # and not one batch more
    model = converted(row)
    if last_saved(folder):  # then nothing of the fresh model may count
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    resumed = train(model, *data, 10, plan(), 0, State(folder, "x"))
    assert resumed.losses == whole.losses and len(whole.losses) == 12
    assert same(resumed.weights, whole.weights)
    assert same(dict(model.named_parameters()), dict(whole_model.named_parameters()))


def test_a_compiled_run_is_resumed_too(denoiser, data, tmp_path, monkeypatch):
    """The context that compiles changes the names of a state; compilation itself is left out here."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    own = plan(compile=True)
    whole = train(denoiser(), *data, 10, own, 0, State(tmp_path / "whole", "x"))
    monkeypatch.setattr(loop, "draw", StopAfter(7))
    with pytest.raises(Stop):
        train(denoiser(), *data, 10, own, 0, State(tmp_path / "cut", "x"))
    monkeypatch.setattr(loop, "draw", draw)
    resumed = train(denoiser(), *data, 10, own, 0, State(tmp_path / "cut", "x"))
    assert resumed.losses == whole.losses and same(resumed.weights, whole.weights)


def last_saved(folder) -> int:
    return max((int(path.stem[4:]) for path in folder.glob("step*.pt")), default=0)


def test_states_are_saved_on_schedule_and_not_at_the_end(denoiser, data, tmp_path):
    saved = []
    state = State(tmp_path, "x")
    state.save = lambda step, value: saved.append((step, sorted(value)))
    train(denoiser(), *data, 10, plan(steps=15, save_every=5), 0, state)
    assert saved == [(step, ["average", "losses", "model", "optimiser"]) for step in (5, 10)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(denoiser, data, tmp_path, bad):
    model = denoiser()
    with torch.no_grad():
        model.proj_out_2.bias[0] = bad
    with pytest.raises(Diverged, match=f"my run: loss is {bad} at step 0; lower the learning rate") as caught:
        train(model, *data, 10, plan(), 0, State(tmp_path, "x"), label="my run")
    assert caught.value.code == 4 and "\n" not in str(caught.value)


def test_frozen_parameters_stay(denoiser, data, tmp_path):
    model = denoiser()
    model.proj_out_1.requires_grad_(False)
    before = model.proj_out_1.weight.clone()
    outcome = train(model, *data, 10, plan(steps=2), 0, State(tmp_path, "x"))
    assert torch.equal(model.proj_out_1.weight, before) and "proj_out_1.weight" not in outcome.weights
