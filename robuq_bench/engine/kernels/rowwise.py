"""Tokens to packed codes in one pass: modulate or GELU, rotate, scale, quantise, pack, project down."""

import ctypes
import functools
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.packing import RANK, ROWS, PackedActivation, pack_bits
from robuq_bench.errors import BenchError
from robuq_bench.quant import gaussian

POINTERS = ("x", "scale", "shift", "mix", "signs", "down", "planes", "code_sum", "step", "offset", "low")
PRE = {"none": 0, "modulate": 1, "gelu": 2}


class _Arguments(ctypes.Structure):
    """`struct Rowwise` of rowwise.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("m", "image_tokens", "tokens_per_block")]
        + [(name, ctypes.c_float) for name in ("norm", "cell", "rounding", "epsilon")]
    )


@dataclass(frozen=True)
class Rotation:
    """x -> signs * x, seen as X [rows, columns] -> mix.T @ X @ H_columns * norm (row-vector convention x @ H).

    mix is float32 [rows, rows] of small integers, signs int32 [width / 32] with one bit a channel (1: negated).
    """

    mix: Tensor
    signs: Tensor
    columns: int
    norm: float

    @property
    def width(self) -> int:
        return len(self.mix) * self.columns


def sylvester(n: int) -> Tensor:
    """The n x n Sylvester-Hadamard matrix, n a power of two, float32."""
    matrix = torch.ones(1, 1)
    while len(matrix) < n:
        matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    return matrix


def full_rotation(base: Tensor, width: int, signs: Tensor | None = None) -> Rotation:
    """x @ (base (x) H_2 (x) ... (x) H_2) / sqrt(width), with base any K x K matrix of +-1 and width = K 2^m.

    signs is [width] of +-1. Raises BenchError unless the width is K 2^m, a multiple of 128, with K <= 48.
    """
    power = width // len(base)
    # As much of the power of two as fits goes to the tensor cores; the rest is at least 32 and stays in registers.
    widest = max((d for d in (1, 2, 4, 8, 16, 32) if len(base) * d <= 48 and power % (32 * d) == 0), default=0)
    if width % 128 or power * len(base) != width or power & (power - 1) or not widest or power > 128 * widest:
        raise BenchError(
            f"a rotation of width {width} from a {len(base)} x {len(base)} matrix is not supported: "
            "the width must be K 2^m, a multiple of 128 up to 6144, with K at most 48"
        )
    mix = torch.kron(base.float().cpu(), sylvester(widest)).to(base.device)
    return _rotation(mix, power // widest, width**-0.5, signs)


def block_rotation(width: int, signs: Tensor | None = None, block: int = 128) -> Rotation:
    """x @ blockdiag(H_block, ...) / sqrt(block).

    Raises BenchError when the width is no multiple of 128 or has more than 48 blocks.
    """
    if width % 128 or width % block or width // block > 48 or block not in (32, 64, 128):
        raise BenchError(f"rotation of width {width} in blocks of {block} is not supported")
    device = None if signs is None else signs.device
    return _rotation(torch.eye(width // block, device=device), block, block**-0.5, signs)


def _rotation(mix: Tensor, columns: int, norm: float, signs: Tensor | None) -> Rotation:
    width = len(mix) * columns
    negative = torch.zeros(width, dtype=torch.bool, device=mix.device) if signs is None else signs < 0
    return Rotation(mix.float().contiguous(), pack_bits(negative.to(mix.device)), columns, norm)


def source_and_macros(
    rows: int, columns: int, bits: int, pre: str, rank: bool, center: bool
) -> tuple[str, dict[str, int]]:
    macros = {"R": rows, "BLOCKS": columns // 32, "BITS": bits, "PRE": PRE[pre], "RANK": int(rank)}
    macros["TOKENS"] = round_tokens(columns, rank)
    return jit.read_source("rowwise.cu"), macros | {"CENTER": int(center)}


def round_tokens(columns: int, rank: bool) -> int:
    """Tokens that a thread block does at a time, one warp for each 32 columns of a token (see docs/engine.md)."""
    if columns <= 64:
        return 8
    return 4 if rank else 2  # the down-projection reads its matrix once a round


@functools.cache
def _kernel(rows: int, columns: int, bits: int, pre: str, rank: bool, center: bool, device: torch.device) -> jit.Kernel:
    source, macros = source_and_macros(rows, columns, bits, pre, rank, center)
    tokens = round_tokens(columns, rank)
    warps = tokens * columns // 32
    shared = 2 * bits * rows * columns // 8 * tokens
    shared += warps * -(-rows // 8) * 1024 if columns > 32 else 0
    shared += tokens * (rows * columns // 2 + 4) * 4 + warps * 512 if rank else 0
    return jit.Kernel(jit.compile_cubin(source, jit.architecture(device), macros), "rowwise", shared, device)


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
) -> PackedActivation:
    """Quantised and packed tokens of x, bfloat16 [m, width], on torch's current stream.

    pre: "none"; "gelu" (tanh form); "modulate", LayerNorm without affine, then (1 + scale) * . + shift with
    modulation = (scale, shift), each bfloat16 [images, width]. down: `pack_down` of the low-rank branch's first factor,
    applied to the rotated, unquantised token. center: quantise around the token's mean (gives `offset`).
    levels: "midrise" or "midtread". The step is sqrt(pi / 2) * mean|x| times the optimal step for N(0, 1).
    Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    device = x.device
    jit.architecture(device)
    m, width = _check(x, rotation, bits, levels, pre, modulation)
    units = width // 128
    low = None if down is None else torch.empty(m, RANK, dtype=torch.bfloat16, device=device)
    step = torch.empty(m, device=device)
    packed = PackedActivation(
        # Rows past m are multiplied, but their outputs are never stored.
        planes=torch.empty(-(-m // ROWS), bits, units, ROWS, 4, dtype=torch.int32, device=device),
        code_sum=torch.empty(m, dtype=torch.int32, device=device),
        step=step,
        m=m,
        k=width,
        bits=bits,
        shift=-(2**bits - 1) / 2 if levels == "midrise" else -(2.0 ** (bits - 1)),
        offset=torch.empty(m, device=device) if center else None,
        down=low,
    )
    scale, shift = modulation or (None, None)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    tokens = round_tokens(rotation.columns, down is not None)
    warps = tokens * rotation.columns // 32
    run = (
        -(-m // (processors * (16 // warps)) // tokens) * tokens
    )  # tokens of one block; 16 warps fill a multiprocessor
    tensors = (x, scale, shift, rotation.mix, rotation.signs, down, packed.planes, packed.code_sum, step)
    arguments = _Arguments(
        *map(jit.pointer, (*tensors, packed.offset, low)),
        m=m,
        image_tokens=m // len(scale) if scale is not None else 1,
        tokens_per_block=run,
        norm=rotation.norm,
        cell=sqrt(pi / 2) * gaussian.step(levels, bits),
        rounding=2 ** (bits - 1) + (0.5 if levels == "midtread" else 0.0),
        epsilon=epsilon,
    )
    kernel = _kernel(len(rotation.mix), rotation.columns, bits, pre, down is not None, center, device)
    kernel(-(-m // run), 32 * warps, arguments)
    return packed


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
        if tensor.dtype != torch.bfloat16 or tensor.shape[1:] != x.shape[1:] or not tensor.is_contiguous():
            raise BenchError(f"the modulation must be contiguous bfloat16 [images, {x.shape[1]}]")
        if not len(tensor) or len(x) % len(tensor):
            raise BenchError(f"{len(x)} tokens cannot be shared out evenly among {len(tensor)} rows of modulation")
    return x.shape
