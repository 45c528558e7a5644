import numpy as np
import pytest

from robuq_bench.data import idx, load

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
LABELS = np.array([1, 0], np.uint8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("under", [".", "raw", "FashionMNIST/raw", "MNIST/raw"])
def test_round_trip(tmp_path, write_idx, packed, under):
    write_idx(tmp_path / under, IMAGES, LABELS, packed=packed)
    s = load("idx", tmp_path)
    assert s.images.tolist() == IMAGES[..., None].tolist()
    assert s.labels.tolist() == [1, 0]
    assert s.classes == ("0", "1")
    assert s.images.flags.writeable


def test_fashion_mnist_names_the_classes(tmp_path, write_idx):
    s = load("fashion-mnist", write_idx(tmp_path, IMAGES, LABELS))
    assert s.classes[:2] == ("T-shirt/top", "Trouser")


def test_the_training_split_comes_first_and_t10k_stands_in(tmp_path, write_idx):
    write_idx(tmp_path, IMAGES + 100, LABELS, "t10k")
    assert load("idx", tmp_path).images[0, 0, 0, 0] == 100
    write_idx(tmp_path, IMAGES, LABELS, "train")
    assert load("idx", tmp_path).images[0, 0, 0, 0] == 0
    assert idx.read(tmp_path, splits=("t10k",)).images[0, 0, 0, 0] == 100


def test_nothing_there(tmp_path, load_refused):
    assert "train-images-idx3-ubyte" in load_refused("idx", tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_half_a_pair(tmp_path, load_refused, write_idx, name):
    write_idx(tmp_path, IMAGES, LABELS, "t10k")
    write_idx(tmp_path, IMAGES, LABELS, "train")
    (tmp_path / name).unlink()
    assert "missing" in load_refused("idx", tmp_path, tmp_path / name)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "not an idx file"),
        (lambda data: data[:10], "not an idx file"),
        (lambda data: b"\x89PNG" + data[4:], "not an idx file"),
        (lambda data: bytes((0, 0, 13)) + data[3:], "not an idx file"),  # 13 is float32
        (lambda data: data[:3] + b"\2" + data[4:], "not an idx file of unsigned bytes in 3 dimensions"),
        (lambda data: data[:-1], "23 bytes after the header, expected 24"),
        (lambda data: data + b"x", "25 bytes after the header, expected 24"),
        (lambda data: data[:4] + b"\xff" * 12, "0 bytes after the header"),
        (lambda data: data[:4] + bytes(12), "holds no data"),
    ],
)
def test_damaged_images(tmp_path, load_refused, write_idx, damage, says):
    path = write_idx(tmp_path, IMAGES, LABELS) / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    assert says in load_refused("idx", tmp_path, path)


@pytest.mark.parametrize("damage", [lambda data: data[:-6], lambda data: data[:15] + b"\xff" * 9, lambda data: b"no"])
def test_damaged_gzip(tmp_path, load_refused, write_idx, damage):
    path = write_idx(tmp_path, IMAGES, LABELS, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert "damaged or truncated gzip" in load_refused("idx", tmp_path, path)


def test_counts_must_agree(tmp_path, load_refused, write_idx):
    write_idx(tmp_path, IMAGES, np.zeros(3, np.uint8))
    message = load_refused("idx", tmp_path, tmp_path / "train-labels-idx1-ubyte")
    assert "3 labels, but train-images-idx3-ubyte has 2" in message


def test_a_label_that_is_no_class(tmp_path, load_refused, write_idx):
    write_idx(tmp_path, IMAGES, np.array([0, 10], np.uint8))
    message = load_refused("fashion-mnist", tmp_path, tmp_path / "train-labels-idx1-ubyte")
    assert "label 10 is outside 0 ... 9" in message
