"""Noise processes against diffusers' scheduler and quadrature."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from robuq_bench.train.processes import PROCESSES, STEPS

DDPM, FLOW = PROCESSES["ddpm"], PROCESSES["flow"]
TIMES = torch.tensor([0, 1, 17, 500, 998, 999]) / STEPS


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    """Linear betas, learned-range variance: DiT's."""
    return DDPMScheduler(STEPS, variance_type="learned_range", clip_sample=False)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    signal, noise, output = (torch.randn(len(TIMES), c, 5, 5, generator=generator) for c in (3, 3, 6))
    x, target = DDPM.noised(signal, noise, TIMES)
    return signal, noise, output, x, target


def test_noise_is_added_as_diffusers_adds_it(scheduler, drawn):
    signal, noise, _, x, target = drawn
    expected = scheduler.add_noise(signal, noise, (TIMES * STEPS).round().long())
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(target, noise)


def test_times_are_the_steps_and_reach_both_ends():
    generator = torch.Generator().manual_seed(0)
    steps = DDPM.times(40_000, generator, torch.device("cpu")) * STEPS
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.min() == 0 and steps.round().max() == STEPS - 1


def test_bound_is_the_divergence_from_the_true_posterior(scheduler, drawn):
    """In float64 from the means and variances that diffusers' scheduler works with, at every step but the first."""
    signal, _, output, x, target = (tensor[1:] for tensor in drawn)
    total = 0.0
    for index, time in enumerate(TIMES[1:]):
        t = int((time * STEPS).round())
        kept, before = scheduler.alphas_cumprod[t].double(), scheduler.alphas_cumprod[t - 1].double()
        beta, x_t = 1 - kept / before, x[index].double()
        clean = signal[index].double()
        guess = (x_t - (1 - kept).sqrt() * output[index, :3].double()) / kept.sqrt()

        def mean(x0, x_t=x_t, kept=kept, before=before, beta=beta):
            return before.sqrt() * beta / (1 - kept) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - kept) * x_t

        true = torch.distributions.Normal(mean(clean), (beta * (1 - before) / (1 - kept)).sqrt())
        log_variance = scheduler._get_variance(t, predicted_variance=output[index, 3:].double())
        model = torch.distributions.Normal(mean(guess), (0.5 * log_variance).exp())
        total += torch.distributions.kl_divergence(true, model).mean().item() / math.log(2)
    squared = (output[:, :3] - target).square().mean().item()
    loss = DDPM.loss(output, x, TIMES[1:], target).item()
    assert loss == pytest.approx(squared + total / 5, rel=2e-3)


def test_first_step_is_the_mass_of_a_pixels_cell():
    """A sure and right prediction costs nothing but the width of its cell; far off it costs much."""
    signal = torch.zeros(1, 1, 2, 2)
    noise = torch.randn(1, 1, 2, 2)
    time = torch.zeros(1)
    x, target = DDPM.noised(signal, noise, time)
    output = torch.cat([noise, torch.ones(1, 1, 2, 2)], 1)  # variance: beta_0 = 1e-4, deviation 0.01
    mass = math.erf(1 / 255 / (0.01 * math.sqrt(2)))
    assert DDPM.loss(output, x, time, target).item() == pytest.approx(-math.log2(mass), rel=1e-3)


def test_gradient_of_the_bound_reaches_the_variance_alone(drawn):
    _, _, output, x, target = drawn
    output.requires_grad_(True)
    DDPM.loss(output, x, TIMES, target).backward()
    squared = 2 * (output[:, :3] - target) / target.numel()
    torch.testing.assert_close(output.grad[:, :3], squared)
    assert (output.grad[:, 3:] != 0).all()


def test_a_teacher_teaches_noise_in_part_and_variance_whole(drawn):
    _, _, output, x, target = drawn
    mixed = DDPM.taught(target, output, 0.25)
    torch.testing.assert_close(mixed[:, :3], 0.75 * target + 0.25 * output[:, :3])
    assert torch.equal(mixed[:, 3:], output[:, 3:])
    student = torch.zeros_like(output)
    assert DDPM.loss(student, x, TIMES, mixed).item() == pytest.approx(mixed.square().mean().item())


def test_flow_is_a_straight_line():
    signal, noise, time = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3), torch.tensor([0.0, 1.0])
    x, target = FLOW.noised(signal, noise, time)
    assert torch.equal(x[0], signal[0]) and torch.equal(x[1], noise[1])
    assert FLOW.loss(target, x, time, target) == 0 and FLOW.loss(target + 2, x, time, target) == 4
    torch.testing.assert_close(FLOW.taught(target, target + 1, 0.5), target + 0.5)
