"""Integer codes as bytes: trits five to a byte (3^5 = 243), powers of two as bit planes. Exact both ways."""

import numpy as np

from robuq_bench.errors import BenchError

TRITS = 5
PLACES = 3 ** np.arange(TRITS, dtype=np.uint8)
TABLE = (np.arange(3**TRITS, dtype=np.uint8)[:, None] // PLACES % 3).view(f"V{TRITS}").ravel()
"""[243] items of five bytes: the trits of each byte. Copied whole, three times as fast as rows of an array."""


def pack(codes: np.ndarray, levels: int) -> np.ndarray:
    """Codes 0..levels-1 (any shape, uint8) -> uint8 bytes: 1.6 bits a trit, log2(levels) bits otherwise."""
    flat = codes.astype(np.uint8).ravel()
    if levels == 3:
        padded = np.pad(flat, (0, -len(flat) % TRITS)).reshape(-1, TRITS)
        return (padded * PLACES).sum(axis=1, dtype=np.uint8)
    return np.concatenate([np.packbits((flat >> bit) & 1) for bit in range(_bits(levels))])


def packed_bytes(count: int, levels: int) -> int:
    """Bytes that `pack` makes of `count` codes."""
    return -(-count // TRITS) if levels == 3 else -(-count // 8) * _bits(levels)


def check(packed: np.ndarray, levels: int, count: int, where: str) -> None:
    """Raises BenchError when the bytes cannot be what `pack` wrote for `count` codes."""
    if packed.shape != (packed_bytes(count, levels),) or (levels == 3 and packed.max(initial=0) >= 3**TRITS):
        raise BenchError(f"{where}: damaged packed weights; export this model again")


def unpack(packed: np.ndarray, levels: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The inverse of `pack`. Raises BenchError when the bytes cannot be what `pack` wrote."""
    count = int(np.prod(shape))
    check(packed, levels, count, where)
    if levels == 3:
        return TABLE[packed].view(np.uint8)[:count].reshape(shape)
    planes = packed.reshape(_bits(levels), -(-count // 8))
    bits = np.unpackbits(planes, axis=1, count=count)
    return (bits << np.arange(_bits(levels), dtype=np.uint8)[:, None]).sum(axis=0, dtype=np.uint8).reshape(shape)


def _bits(levels: int) -> int:
    return levels.bit_length() - 1
