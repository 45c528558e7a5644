"""Reading and writing files so that a name always holds a whole file (design invariant 5)."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench.errors import BenchError


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it to disk and rename it to `path`.

    On any failure the temporary file is removed and whatever stood at `path` stays as it was.
    Raises BenchError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    # The suffix stays last, because some writers (numpy, PIL) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # some writers make files only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BenchError(f"{path}: disk full; free some space and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EPERM):
            raise BenchError(f"{path}: cannot be written ({error.strerror})") from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON. NaN and infinities are refused: a result must be a number or a reason."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file. Raises BenchError when it is missing or not valid JSON."""
    path = existing(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not valid JSON ({error}); delete it and run the command again") from error


def existing(path: str | os.PathLike, what: str = "file") -> Path:
    """`path` as a Path. Raises BenchError when nothing is there."""
    path = Path(path)
    if not path.exists():
        raise BenchError(f"{path}: no such {what}")
    return path


def sha256_file(path: str | os.PathLike) -> str:
    with open(existing(path), "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 over dtype, shape and contents of the arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
