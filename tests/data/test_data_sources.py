import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robuq_bench.data import SOURCES, load


def test_digits():
    s = load("digits")
    assert s.images.shape == (1797, 8, 8, 1)
    assert s.labels[:5].tolist() == [0, 1, 2, 3, 4]
    assert s.classes == tuple("0123456789")
    assert sorted(np.unique(s.images)) == [(255 * k + 8) // 16 for k in range(17)]
    assert s.images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16


def test_digits_takes_no_path(tmp_path, load_refused):
    load_refused("digits", tmp_path, tmp_path)


def test_an_unknown_source_suggests_the_nearest(load_refused):
    assert "did you mean 'cifar10'?" in load_refused("cifar-10", None, "unknown data source 'cifar-10'")


@pytest.mark.parametrize("source", ["idx", "cifar10", "folder"])
def test_a_path_is_needed(load_refused, source):
    load_refused(source, None, f"source '{source}' needs a path")


@pytest.mark.parametrize("source", SOURCES)
def test_the_path_must_be_a_folder(tmp_path, load_refused, source):
    assert "no such folder" in load_refused(source, tmp_path / "absent", tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in load_refused(source, tmp_path / "file", tmp_path / "file")


def test_a_home_folder_is_expanded(tmp_path, monkeypatch, load_refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    load_refused("idx", "~/empty", tmp_path / "empty")


def test_an_unreadable_file(tmp_path, monkeypatch, load_refused):
    path = tmp_path / "a" / "1.png"
    path.parent.mkdir()
    path.write_bytes(b"")

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # a file mode would not stop root
    assert "cannot be read (Permission denied)" in load_refused("folder", tmp_path, path)


def test_the_room_is_light_to_import():
    heavy = "{'torch', 'sklearn', 'scipy', 'pandas', 'matplotlib'}"
    code = f"import sys, robuq_bench.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
