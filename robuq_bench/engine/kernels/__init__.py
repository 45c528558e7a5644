"""The engine: packed ternary weights and 1-4-bit activations, and the GPU kernels that multiply them.

Importing this package needs no GPU, no CUDA toolkit and no compiler; kernels are compiled at first use (see jit.py).
"""

from robuq_bench.engine.kernels.adaln import AdalnLayer, AdalnStack, modulations, pack_adaln
from robuq_bench.engine.kernels.bitserial import gemm
from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight, pack_activation, pack_weight
from robuq_bench.engine.kernels.rotation import Rotation, block_rotation, full_rotation, pack_down, pack_next
from robuq_bench.engine.kernels.rowwise import rotate_quantize

__all__ = [
    "AdalnLayer",
    "AdalnStack",
    "PackedActivation",
    "PackedWeight",
    "Rotation",
    "block_rotation",
    "full_rotation",
    "gemm",
    "modulations",
    "pack_activation",
    "pack_adaln",
    "pack_down",
    "pack_next",
    "pack_weight",
    "rotate_quantize",
]
