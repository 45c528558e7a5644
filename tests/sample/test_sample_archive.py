"""Samples on disk: ADM's layout, exact round trip, damage refused in one line."""

import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.sample.archive import Samples, load, save


@pytest.fixture
def samples() -> Samples:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    return Samples(images, np.arange(3), {"status": "ok", "reason": "", "protocol": {"steps": 4, "ü": None}})


def test_round_trip(tmp_path, samples):
    save(tmp_path / "s.npz", samples)
    read = load(tmp_path / "s.npz")
    assert np.array_equal(read.images, samples.images) and read.images.dtype == np.uint8
    assert np.array_equal(read.labels, samples.labels) and read.labels.dtype == np.int64
    assert read.card == samples.card and not read.diverged
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_layout_is_adm_s(tmp_path, samples):
    """guided-diffusion's evaluator reads arr_0 and never unpickles here."""
    save(tmp_path / "s.npz", samples)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["arr_0"], samples.images)
        assert np.array_equal(archive["arr_1"], samples.labels)


def test_any_name_will_do(tmp_path, samples):
    """numpy adds .npz to names without it; ours are kept as given."""
    save(tmp_path / "samples", samples)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    assert np.array_equal(load(tmp_path / "samples").images, samples.images)


def test_diverged_row_without_images(tmp_path):
    empty = Samples(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int64), {"status": "diverged", "reason": "nan"})
    save(tmp_path / "s.npz", empty)
    assert load(tmp_path / "s.npz").diverged and load(tmp_path / "s.npz").images.shape == (0, 4, 4, 1)


def test_missing_file(tmp_path, refused):
    refused(lambda: load(tmp_path / "none.npz"), "none.npz", "no such samples")


def test_truncations_are_refused(tmp_path, samples):
    path = tmp_path / "s.npz"
    save(path, samples)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 9), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(BenchError) as caught:
            load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path, samples):
    path = tmp_path / "s.npz"
    save(path, samples)
    whole = path.read_bytes()
    noticed = 0
    positions = [*range(0, len(whole), 4), *range(whole.rindex(b"PK\1\2"), len(whole))]  # and the whole directory
    for position in positions:
        bad = bytearray(whole)
        bad[position] ^= 0xFF
        path.write_bytes(bad)
        try:
            read = load(path)
        except BenchError as error:
            noticed += 1
            assert "\n" not in str(error)
        else:
            assert np.array_equal(read.images, samples.images) and read.card == samples.card
    assert noticed > len(positions) / 2


@pytest.mark.parametrize(("name", "write"), [("a.npy", np.save), ("a.npz", np.savez)])
def test_foreign_arrays_are_refused(tmp_path, name, write, refused):
    write(tmp_path / name, np.zeros(3))
    refused(lambda: load(tmp_path / name), name)


def test_text_is_refused(tmp_path, refused):
    (tmp_path / "s.npz").write_text("hello")
    refused(lambda: load(tmp_path / "s.npz"), "not a samples file")
