from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robuq_bench.data import load

GENERATOR = np.random.default_rng(0)


def photo(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, shape, np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def test_classes_and_files_are_sorted_and_lossless(tmp_path):
    b, a2, a1 = (photo(6, 6, 3) for _ in range(3))
    save(tmp_path / "b" / "1.bmp", b)
    save(tmp_path / "a" / "2.webp", a2)
    save(tmp_path / "a" / "1.PNG", a1)
    (tmp_path / "a" / ".hidden").write_text("ignored")
    (tmp_path / "readme.txt").write_text("beside the classes: ignored")
    s = load("folder", tmp_path)
    assert s.classes == ("a", "b")
    assert s.labels.tolist() == [0, 0, 1]
    assert (s.images == np.stack([a1, a2, b])).all()


def test_grey_stays_grey_unless_one_image_is_rgb(tmp_path):
    grey = photo(4, 4)
    save(tmp_path / "a" / "1.png", grey)
    assert load("folder", tmp_path).images.shape == (1, 4, 4, 1)
    save(tmp_path / "a" / "2.png", photo(4, 4, 3))
    assert (load("folder", tmp_path).images[0] == grey[:, :, None]).all()


def test_jpeg_is_read(tmp_path):
    save(tmp_path / "a" / "1.jpg", np.full((8, 8, 3), 100, np.uint8))
    assert abs(load("folder", tmp_path).images.astype(int) - 100).max() <= 2


def test_oblong_images_are_cut_to_the_centre(tmp_path):
    wide, tall = photo(4, 7, 3), photo(6, 4, 3)
    save(tmp_path / "a" / "1.png", wide)
    save(tmp_path / "a" / "2.png", tall)
    assert (load("folder", tmp_path).images == np.stack([wide[:, 1:5], tall[1:5]])).all()


def test_unequal_sizes(tmp_path, load_refused):
    save(tmp_path / "a" / "1.png", photo(4, 4, 3))
    path = save(tmp_path / "b" / "2.png", photo(5, 5, 3))
    assert "5 pixels" in load_refused("folder", tmp_path, path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_image(tmp_path, load_refused, suffix, kept):
    save(tmp_path / "a" / "1.png", photo(32, 32, 3))
    path = save(tmp_path / "a" / f"2{suffix}", photo(32, 32, 3))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert "not a readable image" in load_refused("folder", tmp_path, path)


@pytest.mark.parametrize("array", [photo(4, 4, 4), photo(4, 4).astype(np.uint16), photo(4, 4) > 9])
def test_other_modes(tmp_path, load_refused, array):
    path = save(tmp_path / "a" / "1.png", array)
    assert "image mode" in load_refused("folder", tmp_path, path)


def test_a_stranger_among_the_images(tmp_path, load_refused):
    save(tmp_path / "a" / "1.png", photo(4, 4, 3))
    path = tmp_path / "a" / "notes.txt"
    path.write_text("hello")
    assert "not an image file" in load_refused("folder", tmp_path, path)


def test_no_classes_and_no_images(tmp_path, load_refused):
    assert "no subfolders" in load_refused("folder", tmp_path, tmp_path)
    (tmp_path / "a").mkdir()
    assert "no images" in load_refused("folder", tmp_path, tmp_path / "a")
