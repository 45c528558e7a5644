"""Rectified flow: what a batch is, the loss, and the held-out check against predicting zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from torch import nn

from robuq_bench.data import ImageSet
from robuq_bench.train.examples import Examples, of_images
from robuq_bench.train.held_out import held_out_loss
from robuq_bench.train.objective import draw, loss, to_images, to_signal


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.rand(50, 1, 4, 4, generator=generator) * 2 - 1
    return signal, torch.arange(50) % 10


class Answer(nn.Module):
    """Answers every batch with `function(x, time, labels)`."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, timestep, class_labels):
        self.sample = self.function(x, timestep / 1000, class_labels)
        return self


@given(hnp.arrays(np.uint8, (2, 3, 3, 1)))
def test_images_and_signals_are_each_other_s_inverse(images):
    signal = to_signal(images)
    assert signal.shape == (2, 1, 3, 3) and signal.dtype == torch.float32
    assert signal.min() >= -1 and signal.max() <= 1
    assert np.array_equal(to_images(signal), images)


def test_signals_outside_are_clipped():
    assert to_images(torch.tensor([-3.0, -1.0, 0.004, 1.0, 9.0]).view(1, 1, 5, 1)).ravel().tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


def test_a_batch_depends_on_its_seed_alone(data):
    torch.manual_seed(1)
    first = draw(*data, 16, 10, 0.5, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = draw(*data, 16, 10, 0.5, 7), draw(*data, 16, 10, 0.5, 8)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("x", "time", "labels", "target"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_a_batch_lies_on_straight_lines_from_image_to_noise(data):
    """x = (1 - t) image + t noise and target = noise - image, so x - t target is an image of the set."""
    batch = draw(*data, 64, 10, 0.0, 3)
    images = batch.x - batch.time[:, None, None, None] * batch.target
    distance = (images[:, None] - data[0][None]).flatten(2).abs().amax(-1)
    nearest = distance.min(1)
    assert nearest.values.max() < 1e-5
    assert torch.equal(data[1][nearest.indices], batch.labels)
    assert batch.time.min() > 0 and batch.time.max() < 1


def test_times_are_logistic_normal(data):
    time = draw(*data, 20_000, 10, 0.0, 0).time
    logit = torch.log(time / (1 - time))
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.7])
def test_labels_are_dropped_at_their_rate(data, dropout):
    labels = draw(*data, 20_000, 10, dropout, 0).labels
    assert ((labels == 10).float().mean() - dropout).abs() < 0.012


def test_dropout_changes_nothing_but_labels(data):
    kept, dropped = draw(*data, 64, 10, 0.0, 3), draw(*data, 64, 10, 0.9, 3)
    assert torch.equal(kept.x, dropped.x) and torch.equal(kept.target, dropped.target)
    assert torch.equal(kept.labels[dropped.labels != 10], dropped.labels[dropped.labels != 10])


def test_loss_is_the_mean_squared_error_of_the_velocity(data):
    batch = draw(*data, 16, 10, 0.0, 3)
    exact = Answer(lambda x, time, labels: batch.target)
    assert loss(exact, batch) == 0
    off = Answer(lambda x, time, labels: batch.target + 0.5)
    torch.testing.assert_close(loss(off, batch), torch.tensor(0.25))


def held_out(n: int = 256) -> Examples:
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    return of_images(ImageSet(images, np.arange(n) % 10, tuple("abcdefghij")))


def test_predicting_zero_is_no_better_than_predicting_zero():
    value, trivial = held_out_loss(Answer(lambda x, time, labels: torch.zeros_like(x)), held_out(), "cpu")
    assert value == trivial > 0
    assert not value < trivial  # the check of train.stage


def test_held_out_loss_is_the_same_each_time_and_covers_all_times():
    times = []

    def answer(x, time, labels):
        times.append(time)
        return 0.1 * x

    first = held_out_loss(Answer(answer), held_out(), "cpu")
    torch.manual_seed(5)
    assert held_out_loss(Answer(answer), held_out(), "cpu") == first
    assert torch.cat(times).unique().tolist() == pytest.approx([(k + 0.5) / 8 for k in range(8)])


def test_a_perfect_model_has_no_held_out_loss():
    signal = held_out().signal
    seen = [0]

    def answer(x, time, labels):
        images = signal[seen[0] : seen[0] + len(x)]
        seen[0] += len(x)
        return (x - images) / time[:, None, None, None]

    value, trivial = held_out_loss(Answer(answer), held_out(), "cpu")
    assert value < 1e-8 and trivial > 1 and seen == [256]


def test_few_held_out_images_are_measured_too():
    """Fewer than one batch of 128."""
    value, trivial = held_out_loss(Answer(lambda x, time, labels: torch.zeros_like(x)), held_out(100), "cpu")
    assert value == trivial > 0
