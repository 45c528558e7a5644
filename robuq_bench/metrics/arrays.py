"""Feature matrices: checked, and taken a block of rows at a time, so that they may lie on disk."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from robuq_bench.errors import BenchError


class Rows:
    """Matrices [n, d] of equal d, one after another, as one matrix; slices of rows are copied, nothing else.

    With memory-mapped parts the whole need never be in memory.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.shape = (int(self.starts[-1]), *self.parts[0].shape[1:])
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("only contiguous rows")
        found = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for first, part in zip(self.starts, self.parts, strict=False)
        ]
        return np.concatenate(found)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)


Matrix = np.ndarray | Rows


def float64_matrix(values: Matrix, what: str) -> np.ndarray:
    """`values` as float64 [N, d]. Raises BenchError unless they are two-dimensional, not empty and finite."""
    values = np.asarray(values, dtype=np.float64)
    _check(values.shape, what)
    if not np.isfinite(values).all():
        raise _not_finite(what)
    return values


def blocks(values: Matrix, rows: int, what: str) -> Iterator[tuple[slice, np.ndarray]]:
    """(where, float64 [at most `rows`, d]) for all rows, each checked as by `float64_matrix`."""
    for where, block in _slices(values, rows):
        yield where, float64_matrix(block, what)


def tensors(
    values: Matrix, rows: int, what: str, device: torch.device | str, start: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """As `blocks`, for rows from `start` on, each block a float64 tensor on `device`."""
    for where, block in _slices(values, rows, start):
        _check(block.shape, what)
        tensor = torch.from_numpy(np.ascontiguousarray(block)).to(device).double()
        if not tensor.isfinite().all():
            raise _not_finite(what)
        yield where, tensor


def _slices(values: Matrix, rows: int, start: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    for first in range(start, max(len(values), start + 1), rows):
        where = slice(first, min(first + rows, len(values)))
        yield where, values[where]


def _check(shape: tuple[int, ...], what: str) -> None:
    if len(shape) != 2 or 0 in shape:
        raise BenchError(f"{what}: expected a matrix [images, dimensions], got shape {list(shape)}")


def _not_finite(what: str) -> BenchError:
    return BenchError(f"{what}: not finite; the images come from a diverged model or are damaged")
