"""The engine: packed ternary weights and 1-4-bit activations, and the GPU kernels that multiply them.

Importing this package needs no GPU, no CUDA toolkit and no compiler; kernels are compiled at first use (see jit.py).
"""

from robuq_bench.engine.kernels.bitserial import Tile, choose_tile, gemm
from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight, pack_activation, pack_down, pack_weight
from robuq_bench.engine.kernels.rowwise import Rotation, block_rotation, full_rotation, rotate_quantize

__all__ = [
    "PackedActivation",
    "PackedWeight",
    "Rotation",
    "Tile",
    "block_rotation",
    "choose_tile",
    "full_rotation",
    "gemm",
    "pack_activation",
    "pack_down",
    "pack_weight",
    "rotate_quantize",
]
