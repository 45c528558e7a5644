"""Shared by the tests of the data room: writing idx files, and what every refusal must look like."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from robuq_bench.data import load
from robuq_bench.errors import BenchError


@pytest.fixture
def load_refused():
    """Load, expect a BenchError of one line that names `culprit`, and return its message."""

    def check(source: str, path: Path | str | None, culprit: object) -> str:
        with pytest.raises(BenchError) as caught:
            load(source, path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(culprit) in message
        return message

    return check


@pytest.fixture
def idx_bytes():
    def encode(array: np.ndarray) -> bytes:
        return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    return encode


@pytest.fixture
def write_idx(idx_bytes):
    """Write a split of uint8 images [n, H, W] and labels [n] into a folder; return the folder."""

    def write(folder: Path, images, labels, split: str = "train", packed: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            path = folder / f"{split}-{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
        return folder

    return write
