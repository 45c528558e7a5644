"""Integer codes as bytes: trits five to a byte (3^5 = 243), powers of two as bit planes. Exact both ways."""

import numpy as np

from robuq_bench.errors import BenchError

TRITS = 5
PLACES = 3 ** np.arange(TRITS, dtype=np.uint8)


def pack(codes: np.ndarray, levels: int) -> np.ndarray:
    """Codes 0..levels-1 (any shape, uint8) -> uint8 bytes: 1.6 bits a trit, log2(levels) bits otherwise."""
    flat = codes.astype(np.uint8).ravel()
    if levels == 3:
        padded = np.pad(flat, (0, -len(flat) % TRITS)).reshape(-1, TRITS)
        return (padded * PLACES).sum(axis=1, dtype=np.uint8)
    return np.concatenate([np.packbits((flat >> bit) & 1) for bit in range(_bits(levels))])


def unpack(packed: np.ndarray, levels: int, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The inverse of `pack`. Raises BenchError when the bytes cannot be what `pack` wrote."""
    count = int(np.prod(shape))
    per_plane = -(-count // 8)
    expected = -(-count // TRITS) if levels == 3 else per_plane * _bits(levels)
    if packed.shape != (expected,) or (levels == 3 and packed.max(initial=0) >= 3**TRITS):
        raise BenchError(f"{where}: damaged packed weights; export this model again")
    if levels == 3:
        return (packed[:, None] // PLACES % 3).ravel()[:count].reshape(shape)
    planes = packed.reshape(_bits(levels), per_plane)
    bits = np.unpackbits(planes, axis=1, count=count)
    return (bits << np.arange(_bits(levels), dtype=np.uint8)[:, None]).sum(axis=0, dtype=np.uint8).reshape(shape)


def _bits(levels: int) -> int:
    return levels.bit_length() - 1
