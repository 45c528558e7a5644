"""Feature matrices: checked, and taken a block of rows at a time, so that they may lie on disk."""

from collections.abc import Iterator, Sequence

import numpy as np

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
    if values.ndim != 2 or not values.size:
        raise BenchError(f"{what}: expected a matrix [images, dimensions], got shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise BenchError(f"{what}: not finite; the images come from a diverged model or are damaged")
    return values


def blocks(values: Matrix, rows: int, what: str, start: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """(where, float64 [at most `rows`, d]) for all rows from `start` on, each checked as by `float64_matrix`."""
    for first in range(start, max(len(values), start + 1), rows):
        where = slice(first, min(first + rows, len(values)))
        yield where, float64_matrix(values[where], what)
