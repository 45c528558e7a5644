"""DiT's samplers against the recursion written out in float64, and against diffusers where no step is left out."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from robuq_bench.config.preset import Sampling
from robuq_bench.models.dit import Shape
from robuq_bench.sample.generate import draw_lane
from robuq_bench.sample.solvers import SOLVERS, spaced

SHAPE = Shape(4, 2, 3, variance=True)


def generators(count=3):
    return [torch.Generator().manual_seed(7 + k) for k in range(count)]


def outputs(steps):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, 3, 4, 4, 4, generator=generator)


def noise_of(generator):
    return torch.randn(1, 2, 4, 4, generator=generator)[0].double()


@pytest.mark.parametrize("steps", [2, 10, 50, 100, 250, 400, 1000])
def test_steps_are_spaced_as_in_dit(steps):
    """First and last are taken; a fractional stride is added up and rounded."""
    stride, at, expected = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        expected.append(round(at))
        at += stride
    assert spaced(steps).tolist() == expected


@pytest.mark.parametrize("steps", [1, 1001])
def test_step_counts_that_cannot_be(steps, refused):
    refused(lambda: SOLVERS["ddpm"](steps), f"sample.steps {steps}", "2 to 1000")


def test_ancestral_steps_follow_the_equations():
    """Posterior mean of the predicted image; a variance between the posterior's and beta's; no noise at the end."""
    steps, x = 10, torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    solver, draws, given = SOLVERS["ddpm"](steps), generators(), outputs(steps)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[spaced(steps)]
    expected, own = x.double(), generators()
    for index in range(steps):
        x = solver.step(given[index], index, x, draws)
        now = steps - 1 - index
        before = kept[now - 1] if now else torch.tensor(1.0, dtype=torch.float64)
        beta = 1 - kept[now] / before
        noise, where = given[index].double().chunk(2, 1)
        clean = (expected - (1 - kept[now]).sqrt() * noise) / kept[now].sqrt()
        mean = before.sqrt() * beta / (1 - kept[now]) * clean
        mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - kept[now]) * expected
        if now:
            low, high = (beta * (1 - before) / (1 - kept[now])).log(), beta.log()
            deviation = (0.5 * (low + (where + 1) / 2 * (high - low))).exp()
            mean = mean + deviation * torch.stack([noise_of(generator) for generator in own])
        expected = mean
    torch.testing.assert_close(x.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("ddpm", DDPMScheduler), ("ddim", DDIMScheduler)])
def test_all_thousand_steps_are_diffusers_own(name, kind):
    extra = {"variance_type": "learned_range"} if name == "ddpm" else {}
    theirs = kind(1000, clip_sample=False, **extra)
    theirs.set_timesteps(1000)
    solver = SOLVERS[name](1000)
    assert solver.timesteps.tolist() == theirs.timesteps.tolist()
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    output = outputs(1)[0]
    for index in (0, 1, 500, 998, 999):
        arguments = {"generator": generators()} if name == "ddpm" else {}
        given = output if name == "ddpm" else output[:, :2]
        expected = theirs.step(given, theirs.timesteps[index], x, **arguments).prev_sample
        torch.testing.assert_close(solver.step(output, index, x, generators()), expected, rtol=1e-4, atol=1e-4)


def test_ddim_with_the_true_noise_goes_straight_to_the_image():
    """eta = 0 and a perfect model: whatever the steps, the end is the image that the noise was added to."""
    clean, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x = float(kept[999] ** 0.5) * clean + float((1 - kept[999]) ** 0.5) * noise
    solver = SOLVERS["ddim"](7)
    for index in range(7):
        x = solver.step(torch.cat([noise, noise], 1), index, x, [])
    torch.testing.assert_close(x, clean, rtol=1e-3, atol=1e-3)


class Labelled:
    """A model whose output is its label, in channel k times k + 1; it keeps the timesteps it was asked at."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, timestep, class_labels):
        self.asked.append(timestep[0].item())
        planes = class_labels.float()[:, None] * torch.arange(1.0, 5.0)
        self.sample = planes[:, :, None, None].expand(-1, -1, *x.shape[2:]) / 1000
        return self


@pytest.mark.parametrize(("channels", "expected"), [(None, [0, 0]), (1, [0, 1]), (2, [0, 0])])
def test_guidance_acts_on_the_guided_channels(monkeypatch, channels, expected):
    """Label 0 guided away from "no class" (3) by 2: 3 + 2 (0 - 3) = -3; unguided: 0."""
    seen = []

    class Recording:
        timesteps = torch.tensor([999])

        def step(self, output, index, x, draws):
            seen.append(output * 1000)
            return x

    monkeypatch.setitem(SOLVERS, "ddpm", lambda steps: Recording())
    plan = Sampling(n=1, steps=2, guidance=2, scheduler="ddpm", guided_channels=channels, lane=1)
    draw_lane(Labelled(), SHAPE, range(1), plan, "cpu", lambda x: x)
    values = seen[0][0, :, 0, 0]
    full = torch.tensor([-3.0, -6.0, 0.0, 0.0])
    wanted = torch.tensor([full[k] if not expected[k] else 0.0 for k in range(2)] + [0.0, 0.0])
    torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_an_image_depends_on_its_seed_and_lane_mates_do_not_matter(scheduler):
    model = Labelled()
    wide = Sampling(n=4, steps=5, guidance=1.5, scheduler=scheduler, lane=4)
    together = draw_lane(model, SHAPE, range(4), wide, "cpu", lambda x: x)
    assert model.asked == [999.0, 749.0, 500.0, 250.0, 0.0]
    alone = draw_lane(Labelled(), SHAPE, range(2, 3), wide, "cpu", lambda x: x)
    torch.testing.assert_close(alone[0], together[2])
    assert not torch.allclose(together[0], together[3]), "same class, another seed"
