"""The time-aware quantiser of QuEST (selective finetuning)."""

import pytest
import torch

from robuq_bench.quant.timed import TimedQuantiser, timed_quantisers, watch_time


def quantiser(step: list[float], offset: list[float], bits: int = 2) -> TimedQuantiser:
    made = TimedQuantiser(bits, len(step))
    made.step.data, made.offset.data = torch.tensor(step), torch.tensor(offset)
    return made


def test_each_sample_meets_the_range_of_its_time():
    made = quantiser([1.0, 0.5], [-1.0, 0.0])
    made.bucket = torch.tensor([0, 1])
    x = torch.tensor([[-3.0, -0.4, 0.6, 9.0]] * 2)
    assert made(x).tolist() == [[-1.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.5, 1.5]]


def test_gradients_reach_inputs_inside_and_the_ranges():
    """LSQ: step gets (code - position) inside and the code outside; the offset what is clipped."""
    made = quantiser([1.0], [0.0])
    made.bucket = torch.tensor([0])
    x = torch.tensor([[-1.0, 1.25, 9.0]], requires_grad=True)
    made(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 0.0]]
    assert made.step.grad.tolist() == [0 + (1 - 1.25) + 3]
    assert made.offset.grad.tolist() == [2.0]


def test_fit_clips_outliers_when_that_pays():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator)
    made = TimedQuantiser(2, 3)
    made.fit(x, 1)
    made.bucket = torch.tensor([1])
    plain = quantiser([float((x.max() - x.min()) / 3)], [float(x.min())])
    plain.bucket = torch.tensor([0])

    def error(q):
        return (q(x[None]) - x).square().mean().item()

    assert error(made) < 0.5 * error(plain)
    assert made.step.tolist()[0] == made.step.tolist()[2] == 1.0, "other intervals are left alone"


def test_fit_takes_the_best_of_its_candidates():
    """Against a search by hand, in float64."""
    x = torch.randn(999, generator=torch.Generator().manual_seed(1)) ** 3
    made = TimedQuantiser(3, 1)
    made.fit(x, 0, candidates=9)
    low, high, best = x.min().item(), x.max().item(), (float("inf"),)
    for share in torch.linspace(0.3, 1.0, 9).tolist():
        step, offset = (high - low) * share / 7, low * share
        codes = ((x.double() - offset) / step).round().clamp(0, 7)
        best = min(best, ((codes * step + offset - x).square().mean().item(), step, offset))
    assert (made.step.item(), made.offset.item()) == pytest.approx(best[1:])


def test_the_model_tells_its_quantisers_the_time(converted, batch):
    model = converted("quest_selective/W4A4")
    images, _, labels = batch
    model(images, timestep=torch.tensor([0.0, 499.0, 1000.0]), class_labels=labels)
    found = timed_quantisers(model)
    assert len(found) == 2 * 5
    assert all(q.bucket.tolist() == [0, 9, 19] for q in found.values())
    watch_time(model)  # twice is harmless
    model(images, timestep=torch.tensor([0.0, 499.0, 1000.0]), class_labels=labels)
