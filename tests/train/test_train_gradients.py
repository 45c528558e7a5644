"""Gradients of several processes: summed on the way, whatever fills a bucket and whoever gets none."""

from typing import ClassVar

import pytest
import torch

from robuq_bench.train import gradients
from robuq_bench.train.distributed import World
from robuq_bench.train.gradients import Gradients


class Doubling(World):
    """Stands for two processes with the same gradients; `left` holds how many numbers were sent at a time."""

    left: ClassVar[list[int]]

    def start_sum(self, tensor):
        self.left.append(tensor.numel())
        tensor *= 2
        return self

    def wait(self):
        pass


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET", 10)
    monkeypatch.setattr(Doubling, "left", [], raising=False)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))


def test_every_gradient_is_the_sum_and_full_buckets_leave_first(model):
    summed, x = Gradients(model.parameters(), Doubling(0, 2)), torch.rand(5, 3)
    model(x).sum().backward()
    own = [parameter.grad.clone() for parameter in model.parameters()]
    assert Doubling.left == [], "the images of this pass are not all of the step"
    model.zero_grad()
    with summed.summed():
        model(x).sum().backward()
        assert Doubling.left == [16, 12], "while the backward pass goes on"
    assert sum(Doubling.left) == sum(gradient.numel() for gradient in own)
    for parameter, gradient in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_passes_of_one_step_add_up(model):
    summed, (first, second) = Gradients(model.parameters(), Doubling(0, 2)), torch.rand(2, 5, 3)
    model(torch.cat([first, second])).sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(first).sum().backward()
    with summed.summed():
        model(second).sum().backward()
    for parameter, gradient in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_who_gets_no_gradient_is_not_waited_for(model):
    """As in the phases of a recipe, which train other layers in turn."""
    summed = Gradients(model.parameters(), Doubling(0, 2))
    for trained in (0, 1):
        model.requires_grad_(False)
        model[trained].requires_grad_(True)
        model.zero_grad()
        with summed.summed():
            model(torch.rand(5, 3)).sum().backward()
        assert Doubling.left.pop() == 12 and Doubling.left == []
        assert [layer.weight.grad is not None for layer in model] == [trained == 0, trained == 1, False]


def test_an_error_leaves_nothing_behind(model):
    summed = Gradients(model.parameters(), Doubling(0, 2))
    with pytest.raises(ZeroDivisionError), summed.summed():
        model(torch.rand(5, 3)).sum().backward()
        raise ZeroDivisionError
    Doubling.left.clear()
    model(torch.rand(5, 3)).sum().backward()
    assert Doubling.left == [] and summed.bucket == [] and summed.under_way == []


def test_one_process_sums_nothing(model):
    summed = Gradients(model.parameters(), World())
    with summed.summed():
        model(torch.rand(5, 3)).sum().backward()
    assert Doubling.left == []
