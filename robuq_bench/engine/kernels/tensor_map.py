"""Tensor maps: how Hopper's copy unit finds boxes of a matrix in memory and lays them out in shared memory."""

import ctypes

from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError

BYTES, ALIGNMENT = 128, 64
BFLOAT16, PROMOTE_128 = 9, 2  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_L2_PROMOTION_L2_128B
PLAIN, SWIZZLE_128 = 0, 3  # CU_TENSOR_MAP_SWIZZLE_NONE, _128B


def tensor_map(matrix: Tensor, rows: int, columns: int, swizzled: bool) -> bytes:
    """The map (CUtensorMap) of a contiguous bfloat16 matrix for boxes of `rows` by `columns`.

    swizzled: rows of 128 bytes, so `columns` = 64. Raises BenchError when the driver refuses.
    """
    place = (ctypes.c_ubyte * (BYTES + ALIGNMENT))()
    start = -(-ctypes.addressof(place) // ALIGNMENT) * ALIGNMENT
    height, width = matrix.shape
    status = jit.driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(start),
        BFLOAT16,
        2,
        ctypes.c_void_p(matrix.data_ptr()),
        (ctypes.c_uint64 * 2)(width, height),
        (ctypes.c_uint64 * 1)(2 * width),
        (ctypes.c_uint32 * 2)(columns, rows),
        (ctypes.c_uint32 * 2)(1, 1),  # every element
        0,  # not interleaved
        SWIZZLE_128 if swizzled else PLAIN,
        PROMOTE_128,
        0,  # zeros beyond the edge
    )
    if status:
        raise BenchError(f"the driver makes no tensor map of {height} x {width} in boxes of {rows} x {columns}")
    return ctypes.string_at(start, BYTES)
