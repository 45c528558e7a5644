"""ADM's crop: halve by boxes, resize bicubically, cut the centre."""

import numpy as np
import pytest
from PIL import Image

from robuq_bench.data.crop import central_square


@pytest.fixture
def saved(tmp_path):
    def save(array, name="a.png"):
        Image.fromarray(np.asarray(array, np.uint8)).save(tmp_path / name)
        return tmp_path / name

    return save


def test_the_right_size_is_left_alone(saved):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    assert np.array_equal(central_square(saved(array), 8), array)


def test_twice_the_size_is_halved_by_means(saved):
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    means = array.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(central_square(saved(array), 8) - means).max() <= 1


@pytest.mark.parametrize("shape", [(8, 20, 3), (20, 8, 3)])
def test_the_centre_of_the_longer_side_is_kept(saved, shape):
    ramp = np.zeros(shape, np.uint8)
    ramp += (
        np.arange(20, dtype=np.uint8)[None, :, None] if shape[1] == 20 else np.arange(20)[:, None, None].astype("u1")
    )
    cut = central_square(saved(ramp), 8)
    axis = cut[0, :, 0] if shape[1] == 20 else cut[:, 0, 0]
    assert axis.tolist() == list(range(6, 14))


def test_what_is_between_is_resized_bicubically(saved):
    array = np.random.default_rng(0).integers(0, 256, (12, 18, 3)).astype(np.uint8)
    resized = Image.fromarray(array).resize((12, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(central_square(saved(array), 8), np.asarray(resized)[:, 2:10])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("RGB", (9, 9), (200, 200, 200)).convert(mode, dither=Image.Dither.NONE)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    cut = central_square(path, 8)
    assert cut.shape == (8, 8, 3) and cut.dtype == np.uint8 and np.abs(cut.astype(int) - 200).max() <= 4


def test_an_image_that_does_not_decode_is_named(saved, refused):
    path = saved(np.zeros((9, 9, 3)))
    path.write_bytes(path.read_bytes()[:30])
    refused(lambda: central_square(path, 8), path, "not a readable image")
