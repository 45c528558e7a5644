import zipfile

import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.sample import npz


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_slices_are_those_of_the_array(tmp_path, images, write):
    write(tmp_path / "x.npz", images, np.arange(50))
    array = npz.open_array(tmp_path / "x.npz")
    assert (array.shape, array.dtype, array.ndim, array.size, len(array)) == (images.shape, np.uint8, 4, 4500, 50)
    for rows in (slice(0, 7), slice(7, 20), slice(3, 9), slice(45, 99), slice(None)):  # backwards too
        np.testing.assert_array_equal(array[rows], images[rows])
    np.testing.assert_array_equal(npz.open_array(tmp_path / "x.npz", "arr_1")[2:4], [2, 3])
    assert npz.names(tmp_path / "x.npz") == ["arr_0", "arr_1"]


def test_plain_files_are_mapped_and_not_read(tmp_path, images):
    np.savez(tmp_path / "x.npz", images)
    assert isinstance(npz.open_array(tmp_path / "x.npz"), np.memmap)


def test_an_empty_array(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((0, 4, 4, 3), np.uint8))
    assert npz.open_array(tmp_path / "x.npz").shape == (0, 4, 4, 3)


def test_damage_is_told_in_one_line(tmp_path, images):
    path = tmp_path / "x.npz"
    with pytest.raises(BenchError, match="no such file"):
        npz.open_array(path)
    np.savez(path, images)
    with pytest.raises(BenchError, match=r"no item named 'mu\.npy'"):
        npz.open_array(path, "mu")
    path.write_bytes(path.read_bytes()[:-30])
    for read in (npz.open_array, npz.names):
        with pytest.raises(BenchError, match=r"x\.npz: truncated, or not a \.npz file"):
            read(path)


def test_pickles_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, np.array([{}], dtype=object))
    with pytest.raises(BenchError, match="not a plain array"):
        npz.open_array(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"not an array")
    with pytest.raises(BenchError, match="truncated, or not"):
        npz.open_array(path)
