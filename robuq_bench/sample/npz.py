"""Arrays in .npz files too large for memory: read a slice at a time, where they lie."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import existing

DAMAGED = (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, TypeError, NotImplementedError, zlib.error)
LOCAL_HEADER = 30  # bytes before the name of a member, whose length stands at 26, that of the extra field at 28


class Packed:
    """A compressed array of a .npz, of which slices of rows are unpacked as they are read; forwards is quick."""

    def __init__(self, path: Path, member: str):
        self._stream = zipfile.ZipFile(path).open(member)  # noqa: SIM115 - kept open
        self.shape, self.dtype = _npy_header(self._stream)
        self._first = self._stream.tell()
        self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        width = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._stream.seek(self._first + start * width)
        content = self._stream.read(max(stop - start, 0) * width)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def open_array(path: str | Path, name: str = "arr_0") -> np.ndarray | Packed:
    """The array `name` of the .npz at `path`: memory-mapped when it is stored plainly, as NumPy's `savez` does.

    Raises BenchError when the file is missing, truncated or no .npz, or has no such array of plain numbers.
    """
    path = existing(path, "file")
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return Packed(path, info.filename)
        return _mapped(path, info)
    except DAMAGED as error:
        raise damaged(path, error) from error


def names(path: str | Path) -> list[str]:
    """Names of the arrays in the .npz at `path`. Raises BenchError when it is missing, truncated or no .npz."""
    path = existing(path, "file")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGED as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> BenchError:
    reason = " ".join(str(error).split())
    return BenchError(f"{path}: truncated, or not a .npz file of this kind ({reason}); get or make it again")


def _mapped(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with open(path, "rb") as handle:
        handle.seek(info.header_offset)
        header = handle.read(LOCAL_HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        handle.seek(info.header_offset + LOCAL_HEADER + name + extra)
        shape, dtype = _npy_header(handle)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(handle, dtype, mode="r", offset=handle.tell(), shape=shape)


def _npy_header(handle) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(handle)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(handle)
    if fortran or dtype.hasobject:
        raise ValueError("not a plain array in C order")
    return shape, dtype
