"""A name always holds a whole file, and what goes wrong is said in one line."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from robuq_bench import files
from robuq_bench.errors import BenchError
from robuq_bench.models import checkpoint
from robuq_bench.sample import archive
from robuq_bench.train.state import State


def listing(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write(tmp_path):
    target = tmp_path / "new" / "folder" / "a.txt"
    with files.atomic(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".txt"
        temporary.write_text("hello")
        temporary.chmod(0o600)  # as some writers do
        assert not target.exists()
    assert target.read_text() == "hello" and listing(target.parent) == ["a.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), BenchError("y"), OSError(errno.EIO, "io")])
def test_failure_inside_keeps_the_old_file_and_leaves_no_temporary(tmp_path, old, failure):
    target = tmp_path / "a.txt"
    if old is not None:
        target.write_text(old)
    with pytest.raises(type(failure)), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert listing(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or target.read_text() == old


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path, monkeypatch, code, refused):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    refused(lambda: files.write_text(target, "new"), target, "disk full", "run the same command again")
    assert target.read_text() == "old" and listing(tmp_path) == ["a.txt"]


def write_checkpoint(path, card):
    checkpoint.save(path, {"a": torch.zeros(1000)}, card("robuq/W3A3"))


def write_state(path, card):
    state = State(path.parent / "other", "x")
    state.folder = path.parent
    state.save(5, {"a": torch.zeros(1000)})


def write_samples(path, card):
    archive.save(path, archive.Samples(np.zeros((3, 4, 4, 1), np.uint8), np.arange(3), {"status": "ok"}))


def write_json(path, card):
    files.write_json(path, {"a": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_checkpoint, "m.safetensors"),
        (write_state, "step00000005.pt"),
        (write_samples, "s.npz"),
        (write_json, "a.json"),
    ],
)
def test_full_disk_under_every_writer(tmp_path, monkeypatch, card, write, name, refused):
    """The temporary file is a full disk; safetensors, which makes its file anew, has a stand-in that says so."""

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full, raising=False)
    target = tmp_path / name
    (tmp_path / f".{target.stem}.{os.getpid()}.tmp{target.suffix}").symlink_to("/dev/full")
    refused(lambda: write(target, card), "disk full", name)
    assert not target.exists() and not [path for path in listing(tmp_path) if ".tmp" in path]


def test_places_that_cannot_be_written(tmp_path, refused):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    refused(lambda: files.write_text(tmp_path / "folder", "a"), tmp_path / "folder", "cannot be written")
    refused(lambda: files.write_text(tmp_path / "file" / "a.txt", "a"), tmp_path / "file", "cannot be written")
    refused(lambda: files.write_text(tmp_path / "file" / "b" / "a.txt", "a"), tmp_path / "file", "cannot be written")
    assert listing(tmp_path) == ["file", "folder"]


# JSON

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@given(JSON)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


def test_json_is_stable_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1, -float("inf")]}])
def test_json_refuses_what_is_no_number(tmp_path, value):
    files.write_text(tmp_path / "a.json", "1")
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == 1 and listing(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe"])
def test_json_that_is_damaged(tmp_path, content, refused):
    (tmp_path / "a.json").write_bytes(content)
    refused(lambda: files.read_json(tmp_path / "a.json"), tmp_path / "a.json", "not valid JSON", "delete it")


def test_missing(tmp_path, refused):
    for read in (files.read_json, files.sha256_file, files.existing):
        refused(lambda read=read: read(tmp_path / "a"), tmp_path / "a", "no such file")
    refused(lambda: files.existing(tmp_path / "a", "checkpoint"), "no such checkpoint")
    assert files.existing(str(tmp_path)) == tmp_path


# Digests


def test_digest_of_a_file(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_digest_of_arrays_covers_type_shape_order_and_values():
    a, b = np.arange(6, dtype=np.int32), np.ones((2, 3))
    ways = [(a, b), (b, a), (a,), (a.reshape(2, 3), b), (a.astype(np.int64), b), (a[::-1], b), (a, b.T), ()]
    digests = [files.sha256_arrays(*arrays) for arrays in ways]
    assert len(set(digests)) == len(ways)
    assert files.sha256_arrays(np.asfortranarray(b)) == files.sha256_arrays(b)
    assert json.dumps(digests[0]) == json.dumps(files.sha256_arrays(a.copy(), b.copy()))
