"""Tokens to packed codes in one pass: modulate or GELU, rotate, scale, quantise, pack, project down."""

import ctypes
import functools
from dataclasses import dataclass
from math import gcd, pi, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.packing import RANK, ROWS, PackedActivation
from robuq_bench.engine.kernels.rotation import Rotation
from robuq_bench.errors import BenchError
from robuq_bench.quant import gaussian

SOURCES = ("rowwise_common.cuh", "rowwise_prepare.cuh", "rowwise_product.cuh", "rowwise.cu")
POINTERS = ("x", "scale", "shift", "mix", "flips", "down", "planes", "code_sum", "step", "offset", "low")
STATIC = 12 * 1024  # bytes: the kernel's other shared memory, and what the driver keeps of each block
PRE = {"none": 0, "modulate": 1, "gelu": 2}


class _Arguments(ctypes.Structure):
    """`struct Rowwise` of rowwise.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("m", "image_tokens")]
        + [("modulation_stride", ctypes.c_longlong)]
        + [(name, ctypes.c_float) for name in ("norm", "unscale", "cell", "epsilon")]
    )


@dataclass(frozen=True)
class Plan:
    """How the work is shared out: macros of rowwise.cu, warps of a block, bytes of shared memory that it asks for."""

    layers: int
    slot: int
    blocks: int
    warps: int
    shared: int

    @property
    def tokens(self) -> int:
        """What a block does at a time."""
        return 4 * self.layers


def plan(rows: int, columns: int, pre: str, shared: int) -> Plan:
    """The plan for tokens [rows, columns] on a multiprocessor with `shared` bytes of shared memory."""
    # What rows leave over 16 is stacked, four tokens or two in a warp; four of wide rows would keep the others waiting.
    slot = next(size for size in (0, 4 if columns < 128 else 8, 8, 16) if rows % 16 <= size)
    warps = 4 * (rows // 16) + slot // 4
    # A thread holds sums of 16 rows and 64 or 128 channels: then 28 or 20 warps fill a multiprocessor's registers.
    layers = max(64 // columns, 1)
    most = max((20 if columns == 128 else 28) // warps, 1)
    x = 4 * layers * (2 * rows * columns + 64) * (1 if pre == "none" else 2)
    blocks = next((blocks for blocks in range(most, 0, -1) if blocks * (x + STATIC) <= shared), None)
    if blocks is None:
        raise BenchError(f"tokens of {rows * columns} channels do not fit in {shared} bytes of shared memory")
    return Plan(layers, slot, blocks, warps, x)


def source_and_macros(
    rotation: tuple[int, int], bits: int, pre: str, rank: bool, center: bool, levels: str, one_image: bool, plan: Plan
) -> tuple[str, dict[str, int]]:
    """rotation: rows and columns. one_image: no block meets tokens of two images at a time."""
    macros = {"R": rotation[0], "C": rotation[1], "LAYERS": plan.layers, "SLOT": plan.slot}
    macros |= {"BLOCKS": plan.blocks, "BITS": bits, "PRE": PRE[pre], "RANK": int(rank)}
    macros |= {"CENTER": int(center), "MIDTREAD": int(levels == "midtread"), "ONE_IMAGE": int(one_image)}
    return jit.read_source(*SOURCES), macros


@functools.cache
def _kernel(
    rotation: tuple[int, int],
    bits: int,
    pre: str,
    rank: bool,
    center: bool,
    levels: str,
    image_tokens: int,
    device: torch.device,
) -> tuple[jit.Kernel, Plan]:
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    chosen = plan(*rotation, pre, shared)
    one_image = image_tokens % chosen.tokens == 0
    source, macros = source_and_macros(rotation, bits, pre, rank, center, levels, one_image, chosen)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    return jit.Kernel(cubin, "rowwise", chosen.shared, device), chosen


def rotate_quantize(
    x: Tensor,
    rotation: Rotation,
    bits: int,
    *,
    pre: str = "none",
    modulation: tuple[Tensor, Tensor] | None = None,
    down: Tensor | None = None,
    center: bool = False,
    levels: str = "midrise",
    epsilon: float = 1e-6,
    out: PackedActivation | None = None,
) -> PackedActivation:
    """Quantised and packed tokens of x, bfloat16 [m, width], on torch's current stream.

    pre: "none"; "gelu" (tanh form); "modulate", LayerNorm without affine, then (1 + scale) * . + shift with
    modulation = (scale, shift), each bfloat16 [images, width], whose rows may lie further apart than `width`. down:
    `pack_down` of the low-rank branch's first factor, applied to the rotated, unquantised token. center: quantise
    around the token's mean (gives `offset`). levels: "midrise" or "midtread". The step is sqrt(pi / 2) * mean|x| times
    the optimal step for N(0, 1). out: what an earlier call with the same options gave, to be overwritten.
    The rotation and `down` are constants: no kernel launched just before may write them.
    Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    device = x.device
    jit.architecture(device)
    m, width = _check(x, rotation, bits, levels, pre, modulation)
    if down is not None and down.numel() != width * 8:
        raise BenchError(f"the down-projection is not that of a layer with {width} inputs")
    shift = -(2**bits - 1) / 2 if levels == "midrise" else -(2.0 ** (bits - 1))
    if out is None:
        out = _empty(m, width, bits, shift, center, down is not None, device)
    elif (out.m, out.k, out.bits, out.shift, out.offset is not None, out.down is not None, out.step.device) != (
        *(m, width, bits, shift, center, down is not None, device),
    ):
        raise BenchError("`out` comes from a call with other sizes or options")
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    image_tokens = m // len(modulation[0]) if modulation else 16
    kernel, chosen = _kernel(
        (len(rotation.mix), rotation.columns),
        bits,
        pre,
        down is not None,
        center,
        levels,
        gcd(image_tokens, 16),
        device,
    )
    scale, shift_by = modulation or (None, None)
    tensors = (x, scale, shift_by, rotation.mix, rotation.flips, down)
    outputs = (out.planes, out.code_sum, out.step, out.offset, out.down)
    arguments = _Arguments(
        *map(jit.pointer, (*tensors, *outputs)),
        m=m,
        image_tokens=image_tokens,
        modulation_stride=scale.stride(0) // 8 if scale is not None else 0,
        norm=rotation.norm,
        unscale=1 / rotation.norm,
        cell=sqrt(pi / 2) * gaussian.step(levels, bits) * rotation.norm / width,
        epsilon=epsilon,
    )
    blocks = min(-(-m // chosen.tokens), processors * chosen.blocks)
    kernel(blocks, 32 * chosen.warps, arguments)
    return out


def _empty(
    m: int, width: int, bits: int, shift: float, center: bool, rank: bool, device: torch.device
) -> PackedActivation:
    return PackedActivation(
        # Rows past m are multiplied, but their outputs are never stored.
        planes=torch.empty(-(-m // ROWS), bits, width // 128, ROWS, 4, dtype=torch.int32, device=device),
        code_sum=torch.empty(m, dtype=torch.int32, device=device),
        step=torch.empty(m, device=device),
        m=m,
        k=width,
        bits=bits,
        shift=shift,
        offset=torch.empty(m, device=device) if center else None,
        down=torch.empty(m, RANK, dtype=torch.bfloat16, device=device) if rank else None,
    )


def _check(
    x: Tensor,
    rotation: Rotation,
    bits: int,
    levels: str,
    pre: str,
    modulation: tuple[Tensor, Tensor] | None,
) -> tuple[int, int]:
    if x.ndim != 2 or x.dtype != torch.bfloat16 or not x.is_contiguous() or x.shape[1] != rotation.width:
        raise BenchError(f"tokens must be contiguous bfloat16 [m, {rotation.width}], not {x.dtype} {list(x.shape)}")
    if not len(x):
        raise BenchError("there are no tokens to quantise")
    if bits not in gaussian.STEPS.get(levels, {}) or bits not in (1, 2, 3, 4) or pre not in PRE:
        raise BenchError(f"{levels} levels of {bits} bits after pre-operation '{pre}' are not supported")
    if (pre == "modulate") != (modulation is not None):
        raise BenchError("a modulation goes with pre='modulate'")
    for tensor in modulation or ():
        if tensor.dtype != torch.bfloat16 or tensor.shape[1:] != x.shape[1:] or tensor.stride(1) != 1:
            raise BenchError(f"the modulation must be bfloat16 [images, {x.shape[1]}] with contiguous rows")
        if tensor.stride() != modulation[0].stride() or tensor.shape != modulation[0].shape:
            raise BenchError("scale and shift must have one shape and one distance between rows")
        if not len(tensor) or len(x) % len(tensor):
            raise BenchError(f"{len(x)} tokens cannot be shared out evenly among {len(tensor)} rows of modulation")
        if tensor.stride(0) % 8:
            raise BenchError("rows of the modulation must lie a multiple of 8 channels apart")
    if any(tensor.data_ptr() % 16 for tensor in (x, *(modulation or ()))):
        raise BenchError("tokens and modulation must start at a multiple of 16 bytes")
    return x.shape
