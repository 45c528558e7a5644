import json
import shutil

import numpy as np
import pytest
from PIL import Image

from robuq_bench.data import fashion_mnist as fm
from robuq_bench.data import load, package_fashion_mnist, resized
from robuq_bench.errors import BenchError

# Of the t10k files in Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1.
DIGEST = "85ae2febfd2859d87a91eea2a3496ce29716e3962cff2591a7081a39e99810a1"


@pytest.fixture(scope="module")
def packaged():
    return load("fashion-mnist")


def test_known_answers(packaged):
    facts = json.loads((fm.PACKAGED / fm.FACTS).read_text())
    assert packaged.digest == facts["sha256"] == DIGEST
    assert packaged.images.shape == (facts["n"], *facts["size"]) == (10_000, 28, 28, 1)
    assert list(packaged.classes) == facts["classes"]
    assert np.bincount(packaged.labels).tolist() == [1000] * 10
    assert packaged.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert packaged.images.mean() / 255 == pytest.approx(0.28684928, abs=1e-8)
    assert packaged.images.std() / 255 == pytest.approx(0.35244415, abs=1e-8)


def test_16_pixels_keep_the_ink(packaged):
    """Black borders add no ink: the sum over 32x32 is the sum over 28x28, and rounding is to 1/2 at most."""
    some = packaged.subset(range(500))
    small = resized(some, 16).images.astype(int).sum(axis=(1, 2, 3))
    assert abs(small - some.images.astype(int).sum(axis=(1, 2, 3)) / 4).max() <= 256 / 2


def test_the_licence_is_there():
    text = (fm.PACKAGED / "LICENSE.fashion-mnist").read_text()
    assert "MIT" in text
    assert "2017 Zalando SE" in text


@pytest.fixture
def copy(tmp_path):
    for name in (fm.MOSAIC, fm.LABELS, fm.FACTS):
        shutil.copy(fm.PACKAGED / name, tmp_path)
    return tmp_path


def swap_labels(folder):
    path = folder / fm.LABELS
    path.write_text(path.read_text().replace("92", "29", 1))


def truncate(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def another_image(folder):
    Image.new("RGB", (2800, 2800)).save(folder / fm.MOSAIC, lossless=True, method=0)


def smaller_image(folder):
    Image.new("RGB", (28, 28)).save(folder / fm.MOSAIC, lossless=True)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (truncate(fm.MOSAIC), fm.MOSAIC),
        (another_image, fm.MOSAIC),
        (smaller_image, fm.MOSAIC),
        (truncate(fm.LABELS), fm.LABELS),
        (swap_labels, fm.LABELS),
        (lambda folder: (folder / fm.LABELS).write_text("x" * 10_000), fm.LABELS),
        (truncate(fm.FACTS), fm.FACTS),
        (lambda folder: (folder / fm.FACTS).write_text("[]"), fm.FACTS),
        (lambda folder: (folder / fm.FACTS).unlink(), fm.FACTS),
        (lambda folder: (folder / fm.MOSAIC).unlink(), fm.MOSAIC),
    ],
)
def test_damage_is_noticed(copy, monkeypatch, load_refused, damage, names):
    damage(copy)
    monkeypatch.setattr(fm.read_packaged, "__defaults__", (copy,))
    load_refused("fashion-mnist", None, names)


def test_rebuilding(tmp_path, monkeypatch, capsys, write_idx):
    """The real command on four made-up images (the real data are not in the repository as idx files)."""
    monkeypatch.setattr(fm, "TILES", 2)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8)
    write_idx(tmp_path / "in", images, np.array([3, 1, 4, 1], np.uint8), "t10k")
    write_idx(tmp_path / "in", images[::-1], np.zeros(4, np.uint8), "train")  # must not be taken
    out = tmp_path / "out"
    assert package_fashion_mnist.main(["--idx", str(tmp_path / "in"), "--out", str(out)]) == 0
    s = fm.read_packaged(out)
    assert (s.images[..., 0] == images).all()
    assert s.labels.tolist() == [3, 1, 4, 1]
    assert s.digest in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == sorted((fm.MOSAIC, fm.LABELS, fm.FACTS))


def test_the_mosaic_is_laid_row_by_row(monkeypatch):
    monkeypatch.setattr(fm, "TILES", 2)
    images = np.arange(4, dtype=np.uint8).repeat(28 * 28).reshape(4, 28, 28, 1)
    mosaic = fm.to_mosaic(images)
    assert mosaic[[0, 0, 55, 55], [0, 55, 0, 55], 0].tolist() == [0, 1, 2, 3]
    assert (fm.from_mosaic(mosaic) == images).all()


def test_rebuilding_from_something_else(tmp_path, capsys, write_idx):
    write_idx(tmp_path, np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8), "t10k")
    out = tmp_path / "out"
    assert package_fashion_mnist.main(["--idx", str(tmp_path), "--out", str(out)]) == BenchError.code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "not Fashion-MNIST's test split" in message
    assert not out.exists()
