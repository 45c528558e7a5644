import json
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from robuq_bench.data import load

EACH = 3  # images in a batch
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (5 * EACH, 32, 32, 3), np.uint8)
LABELS = GENERATOR.integers(0, 10, 5 * EACH).tolist()


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, as the real CIFAR-10 files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def batch(k: int) -> dict:
    part = slice(k * EACH, (k + 1) * EACH)
    data = np.ascontiguousarray(IMAGES[part].transpose(0, 3, 1, 2)).reshape(EACH, -1)
    return {
        "batch_label": f"batch {k + 1} of 5",
        "labels": LABELS[part],
        "data": data,
        "filenames": ["a.png"] * EACH,
    }


def write_pickles(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(5):
        with open(folder / f"data_batch_{k + 1}", "wb") as handle:
            Python2Pickler(handle, 2).dump(batch(k))
        # the name of the module before numpy 2
        path = folder / f"data_batch_{k + 1}"
        path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return folder


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(5):
        rows = IMAGES[k * EACH : (k + 1) * EACH].reshape(EACH, 1024, 3)
        Image.fromarray(rows).save(folder / f"data_batch_{k + 1}.png")
    (folder / "train_lables.json").write_text(json.dumps(LABELS))
    return folder


@pytest.mark.parametrize("write", [write_pickles, write_images])
@pytest.mark.parametrize("under", [".", "cifar-10-batches-py", "package"])
def test_both_layouts_give_the_same_images(tmp_path, write, under):
    write(tmp_path / under)
    s = load("cifar10", tmp_path)
    assert (s.images == IMAGES).all()
    assert s.labels.tolist() == LABELS
    assert s.classes[3] == "cat"


def test_a_pickle_of_today_is_read_too(tmp_path):
    write_pickles(tmp_path)
    record = {key.encode(): value for key, value in batch(0).items()}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(record, protocol=4))
    assert (load("cifar10", tmp_path).images == IMAGES).all()


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, load_refused, protocol):
    folder, trace = write_pickles(tmp_path / "data"), tmp_path / "ran"
    data = pickle.dumps({b"data": Hostile(trace), b"labels": []}, protocol)
    pickle.loads(data)
    assert trace.exists()  # it is hostile indeed
    trace.unlink()
    (folder / "data_batch_3").write_bytes(data)
    assert "nothing in it was run" in load_refused("cifar10", folder, folder / "data_batch_3")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "os system", "numpy load", "numpy.core.multiarray fromfile", "numpy ndarray.tofile"],
)
def test_only_the_names_of_arrays_are_permitted(tmp_path, load_refused, name):
    module, attribute = name.split()
    folder = write_pickles(tmp_path)
    (folder / "data_batch_1").write_bytes(f"c{module}\n{attribute}\n.".encode())
    assert f"refers to {module}.{attribute}" in load_refused("cifar10", folder, folder / "data_batch_1")


@pytest.mark.parametrize(
    "record",
    [
        [],
        {b"labels": [0]},
        {b"data": [[0] * 3072], b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.float32), b"labels": [0]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]},
        {b"data": np.zeros((1, 3072), np.uint8)},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0, 1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [1.5]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10**30]},
    ],
)
def test_a_mis_shaped_batch(tmp_path, load_refused, record):
    path = write_pickles(tmp_path) / "data_batch_2"
    path.write_bytes(pickle.dumps(record, protocol=4))
    load_refused("cifar10", tmp_path, path)


@pytest.mark.parametrize("keep", [0, 1, 40, -100, -1])
def test_a_truncated_batch(tmp_path, load_refused, keep):
    path = write_pickles(tmp_path) / "data_batch_5"
    path.write_bytes(path.read_bytes()[:keep])
    load_refused("cifar10", tmp_path, path)


def test_nothing_there(tmp_path, load_refused):
    load_refused("cifar10", tmp_path, tmp_path)


@pytest.mark.parametrize("write", [write_pickles, write_images])
def test_every_file_of_a_layout_is_needed(tmp_path, load_refused, write):
    for path in sorted(write(tmp_path).iterdir()):
        data = path.read_bytes()
        path.unlink()
        load_refused("cifar10", tmp_path, path)
        path.write_bytes(data)
    load("cifar10", tmp_path)


def test_damaged_image_files(tmp_path, load_refused):
    path = write_images(tmp_path) / "data_batch_4.png"
    path.write_bytes(path.read_bytes()[:-500])
    assert "truncated" in load_refused("cifar10", tmp_path, path)
    Image.fromarray(np.zeros((EACH, 1000, 3), np.uint8)).save(path)
    assert "1024 pixels wide" in load_refused("cifar10", tmp_path, path)


@pytest.mark.parametrize("text", ["", "[1, 2", "{}", json.dumps(LABELS[1:]), json.dumps([*LABELS[1:], 10])])
def test_damaged_labels(tmp_path, load_refused, text):
    path = write_images(tmp_path) / "train_lables.json"
    path.write_text(text)
    load_refused("cifar10", tmp_path, path)
