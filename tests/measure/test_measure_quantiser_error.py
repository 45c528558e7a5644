"""Activation quantisers compared on a trained model."""

import numpy as np
import pytest
import torch

from robuq_bench.data import ImageSet
from robuq_bench.measure.quantiser_error import BITS, SETTINGS, compare, sentence
from robuq_bench.train.examples import Examples, of_images


@pytest.fixture(scope="module")
def held_out() -> Examples:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    return of_images(ImageSet(images, np.arange(64, dtype=np.int64) % 10, tuple("0123456789")))


@pytest.fixture
def rows(denoiser, held_out, in_root) -> list[dict]:
    model = denoiser()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = list(compare(model, held_out, "cpu"))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items()), "the model is only looked at"
    return found


def test_every_quantiser_at_every_width(rows):
    assert [(row["quantiser"], row["bits"]) for row in rows] == [(name, bits) for name in SETTINGS for bits in BITS]


def test_errors_on_rotated_inputs_are_near_those_on_normal_rows(rows):
    """Relative MSE of N(0, 1) (paper-facts 1.5); rotated activations are only nearly normal."""
    found = {(row["quantiser"], row["bits"]): row["relative_mse"] for row in rows}
    for bits, expected in zip(BITS, (0.1188, 0.0374, 0.0115), strict=True):
        assert found["Gaussian mid-rise", bits] == pytest.approx(expected, rel=0.15)
    for bits in BITS:
        assert found["Gaussian mid-rise", bits] < found["Gaussian mid-tread", bits] < found["absmax", bits]
    assert found["min-max", 2] > 1.5 * found["Gaussian mid-rise", 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_finds_the_same(denoiser, held_out, rows):
    for row, expected in zip(compare(denoiser(), held_out, "cuda"), rows, strict=True):
        assert row["relative_mse"] == pytest.approx(expected["relative_mse"], rel=0.02)


def test_more_bits_lose_less(rows):
    for name in SETTINGS:
        errors = [row["relative_mse"] for row in rows if row["quantiser"] == name]
        assert errors == sorted(errors, reverse=True)


def test_the_sentence_is_made_from_the_lowest_width():
    rows = [
        {"quantiser": "a", "bits": 2, "held_out_loss": 0.5, "relative_mse": 0.1},
        {"quantiser": "b", "bits": 2, "held_out_loss": 0.7, "relative_mse": 0.3},
        {"quantiser": "b", "bits": 3, "held_out_loss": 0.1, "relative_mse": 0.0},
    ]
    text = sentence(rows, full_precision=0.25)
    assert text.startswith("At 2 bits, a loses least (held-out loss 0.5000 against 0.2500 in full precision")
    assert "b most (0.7000, 0.300)" in text
