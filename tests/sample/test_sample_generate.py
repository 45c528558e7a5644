"""Sampling: an image depends on the weights and its seed alone."""

import numpy as np
import pytest
import torch
from torch import nn

from robuq_bench.config.preset import Sampling
from robuq_bench.models.dit import Shape
from robuq_bench.sample.generate import generate, image_class, initial_noise


def plan(**changes) -> Sampling:
    return Sampling(**{"n": 10, "steps": 4, "guidance": 1.5, "lane": 4} | changes)


@pytest.mark.parametrize("guidance", [1, 1.5, 4.0])
@pytest.mark.parametrize("row", ["full_precision/W32A32", "robuq/W1.58A2"])
def test_images_do_not_depend_on_what_else_is_asked_for(converted, shape, guidance, row):
    model, own = converted(row).eval(), plan(guidance=guidance)
    images, labels = generate(model, shape, range(10), own)
    assert images.shape == (10, 8, 8, 1) and images.dtype == np.uint8 and labels.dtype == np.int64
    for seeds in ([7], [9, 0, 4], [3, 3], [*reversed(range(10))], range(4, 8)):
        some, some_labels = generate(model, shape, seeds, own)
        assert np.array_equal(some, images[list(seeds)])
        assert np.array_equal(some_labels, labels[list(seeds)])


def test_images_differ_between_seeds_and_weights(denoiser, shape):
    images, _ = generate(denoiser(0), shape, range(10), plan())
    assert len({image.tobytes() for image in images}) == 10
    others, _ = generate(denoiser(1), shape, range(10), plan())
    assert not np.array_equal(images, others)


def test_global_generator_has_no_say(denoiser, shape):
    torch.manual_seed(1)
    first, _ = generate(denoiser(), shape, [5], plan())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second, _ = generate(denoiser(), shape, [5], plan())
    assert np.array_equal(first, second) and torch.equal(torch.get_rng_state(), before)


def test_lanes_are_always_whole(shape):
    """Whatever is asked for, the model sees batches of one size: the two halves of guidance, or one without."""
    for guidance, batch in ((1, 4), (2.0, 8)):
        sizes: set[int] = set()
        generate(Recorder(sizes), shape, [0, 5, 6, 11], plan(guidance=guidance, lane=4))
        assert sizes == {batch}


def test_progress_counts_the_images_asked_for(shape):
    counts: list[int] = []
    generate(Recorder(set()), shape, [0, 5, 6, 11], plan(lane=4), advance=counts.append)
    assert counts == [1, 2, 1]


def test_classes_go_round(denoiser, shape):
    _, labels = generate(denoiser(), shape, range(23), plan())
    assert labels.tolist() == [k % 10 for k in range(23)]
    assert [image_class(seed, 3) for seed in range(5)] == [0, 1, 2, 0, 1]


def test_noise_is_normal_and_its_own():
    noise = torch.stack([initial_noise(seed, Shape(8, 3, 10)) for seed in range(200)])
    assert noise.shape == (200, 3, 8, 8)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(initial_noise(7, Shape(8, 3, 10)), noise[7])


class Recorder(nn.Module):
    """Velocity zero; notes the sizes of its batches."""

    def __init__(self, sizes: set[int]):
        super().__init__()
        self.sizes = sizes

    def forward(self, x, timestep, class_labels):
        self.sizes.add(len(x))
        assert len(timestep) == len(class_labels) == len(x)
        return Answer(torch.zeros_like(x))


class Answer:
    def __init__(self, sample):
        self.sample = sample


class Straight(nn.Module):
    """The exact velocity of rectified flow towards one image per label: (x - target) / time; "no class" is label 2."""

    def __init__(self, targets: torch.Tensor):
        super().__init__()
        self.targets = targets

    def forward(self, x, timestep, class_labels):
        return Answer((x - self.targets[class_labels]) / (timestep / 1000)[:, None, None, None])


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_heun"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_velocity_ends_at_the_target(scheduler, steps):
    """Time runs from 1 (noise) to 0, velocity is noise - image: straight paths are exact at any number of steps."""
    shape = Shape(size=2, channels=1, classes=2)
    targets = torch.tensor([[-1.0, -0.5, 0.5, 1.0], [1.0, 0.0, -0.25, 0.75], [0.0, 0.0, 0.0, 0.0]]).view(3, 1, 2, 2)
    images, labels = generate(Straight(targets), shape, range(4), plan(steps=steps, guidance=1, scheduler=scheduler))
    expected = ((targets[labels] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, expected)


class Constant(nn.Module):
    """Velocity 1 for the classes, 0 for "no class" (label 10)."""

    def forward(self, x, timestep, class_labels):
        return Answer((class_labels < 10).float()[:, None, None, None].expand_as(x))


@pytest.mark.parametrize("guidance", [1, 2.0, 3.5])
def test_guidance_extrapolates_from_no_class(shape, guidance):
    """Velocity none + g (class - none) = g, over a whole unit of time: every pixel falls by g, twice 127.5 g / 2."""
    images, _ = generate(Constant(), shape, [0], plan(guidance=guidance, steps=5))
    signal = initial_noise(0, shape) - guidance
    expected = ((signal + 1) * 127.5).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(images[0].astype(float) - expected).max() <= 0.51


def test_model_that_returns_nan_is_no_image(shape, refused):
    """Invariant 7: a broken model ends in a plain message, not in black images."""

    class Broken(nn.Module):
        def forward(self, x, timestep, class_labels):
            return Answer(torch.full_like(x, float("nan")))

    refused(lambda: generate(Broken(), shape, [0], plan()))
