"""The adaLN linears of all blocks at once: every block's modulation of the few conditioning vectors of a batch.

A third of a DiT's parameters and next to none of its arithmetic: the time is that of reading the packed weights, so all
layers are one stream of *records*, each with all there is to know of 64 output channels of a layer:

    planes  int32 [k / 128, 2, 64, 4]    P and Q as in packing.py
    alpha, weight_sum, bias  float32 [64] each
    up      bfloat16 [64, 16]            if there is a low-rank branch

Rows of `planes` and `up` are permuted inside each group of 16: row i of the first eight is channel 2 i, of the others
2 i + 1, so that a thread ends with two neighbouring channels.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.packing import RANK, UNIT, pack_bits, settle, unpack_bits
from robuq_bench.engine.kernels.rotation import Rotation
from robuq_bench.errors import BenchError
from robuq_bench.quant import gaussian

CHANNELS = 64  # of one record
POINTERS = ("conditioning", "signs", "mix", "down", "records", "planes", "vectors", "low", "out")


class _Arguments(ctypes.Structure):
    """`struct Adaln` of adaln.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("layers", "batch", "channels")]
        + [(name, ctypes.c_float) for name in ("norm", "cell", "rounding", "shift")]
    )


@dataclass(frozen=True)
class AdalnLayer:
    """One block's adaLN linear: ternary [n, k] of -1, 0, +1; alpha and bias [n]; up [n, 16] and down [16, k] or None.

    `down` acts on the rotated, unquantised vector.
    """

    rotation: Rotation
    ternary: Tensor
    alpha: Tensor
    bias: Tensor
    up: Tensor | None = None
    down: Tensor | None = None


@dataclass(frozen=True)
class AdalnStack:
    """Packed adaLN linears [layers, n, k] on one device: records uint8 [layers, n / 64, bytes], signs int32
    [layers, k / 32], mix float32 [rows, rows] (see `Rotation`), down bfloat16 [layers, k, 16] or None."""

    records: Tensor
    signs: Tensor
    mix: Tensor
    down: Tensor | None
    columns: int
    norm: float
    n: int
    k: int
    bits: int
    levels: str
    center: bool


def pack_adaln(
    layers: Sequence[AdalnLayer], bits: int = 4, levels: str = "midrise", center: bool = False
) -> AdalnStack:
    """Pack the adaLN linears of all blocks, which differ in signs, weights and branch but in no shape.

    bits, levels, center: of the activations, as in `rotate_quantize`. Raises BenchError when the layers do not agree
    with each other, a weight is not ternary, n is no multiple of 64, or the levels are not supported.
    """
    if not layers:
        raise BenchError("there are no adaLN layers to pack")
    one = layers[0]
    n, k = one.ternary.shape
    if n % CHANNELS or k % UNIT:
        raise BenchError(f"adaLN layers need a multiple of {CHANNELS} outputs and {UNIT} inputs, not {n} and {k}")
    if bits not in (1, 2, 3, 4) or bits not in gaussian.STEPS.get(levels, {}):
        raise BenchError(f"{levels} levels of {bits} bits are not supported")
    for layer in layers:
        branch = [part if part is None else tuple(part.shape) for part in (layer.up, layer.down)]
        same = layer.rotation.columns == one.rotation.columns and torch.equal(layer.rotation.mix, one.rotation.mix)
        if tuple(layer.ternary.shape) != (n, k) or not same or layer.rotation.width != k:
            raise BenchError("adaLN layers must have one shape and one rotation, apart from its signs")
        if branch != ([(n, RANK), (RANK, k)] if one.up is not None else [None, None]):
            raise BenchError(
                f"adaLN layers must all have a low-rank branch, of [{n}, {RANK}] and [{RANK}, {k}], or none"
            )
    down = None if one.down is None else torch.stack([layer.down.detach().bfloat16().T for layer in layers])
    stack = AdalnStack(
        records=torch.stack([_records(layer) for layer in layers]),
        signs=torch.stack([layer.rotation.signs for layer in layers]),
        mix=one.rotation.mix,
        down=None if down is None else down.contiguous(),
        columns=one.rotation.columns,
        norm=one.rotation.norm,
        n=n,
        k=k,
        bits=bits,
        levels=levels,
        center=center,
    )
    settle(stack.records)
    return stack


def row_order(n: int) -> Tensor:
    """order [n] int64, n a multiple of 16: row i of the records holds channel order[i]."""
    i = torch.arange(n)
    return i // 16 * 16 + 2 * (i % 8) + i % 16 // 8


def _records(layer: AdalnLayer) -> Tensor:
    """uint8 [n / 64, bytes]."""
    ternary = layer.ternary
    if not bool(((ternary >= -1) & (ternary <= 1) & (ternary == ternary.round())).all()):
        raise BenchError("a packed layer needs weights -1, 0 and +1")
    n, k = ternary.shape
    order = row_order(n).to(ternary.device)
    planes = pack_bits(torch.stack([ternary == 1, ternary != -1])[:, order])
    planes = planes.reshape(2, n // CHANNELS, CHANNELS, k // UNIT, 4).permute(1, 3, 0, 2, 4)
    sums = ternary.sum(-1, dtype=torch.float64)
    parts = [planes, *(part.reshape(-1, CHANNELS) for part in (layer.alpha, sums, layer.bias))]
    parts[1:] = [part.detach().float() for part in parts[1:]]
    if layer.up is not None:
        parts.append(layer.up.detach().bfloat16()[order].reshape(-1, CHANNELS, RANK))
    return torch.cat([part.contiguous().reshape(len(part), -1).view(torch.uint8) for part in parts], 1)


def source_and_macros(
    rows: int, columns: int, bits: int, rank: bool, center: bool, floats: bool, parts: int, stages: int
) -> tuple[str, dict[str, int]]:
    macros = {"R": rows, "BLOCKS": columns // 32, "BITS": bits, "PARTS": parts, "STAGES": stages}
    return jit.read_source("adaln.cu"), macros | {"RANK": int(rank), "CENTER": int(center), "SOURCE": int(floats)}


@functools.cache
def _kernels(
    rows: int, columns: int, bits: int, rank: bool, center: bool, floats: bool, parts: int, stages: int, record: int,
    device: torch.device,
) -> tuple[jit.Kernel, jit.Kernel]:  # fmt: skip
    source, macros = source_and_macros(rows, columns, bits, rank, center, floats, parts, stages)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    return jit.Kernel(cubin, "quantise", 0, device), jit.Kernel(cubin, "product", parts * stages * record, device)


def rings(records: int, batch: int, record: int, blocks: int, shared: int) -> tuple[int, int]:
    """(parts, stages) of the product's blocks: more warps for more vectors, else more records in flight, but no more
    than there are, as shared memory that is taken keeps other kernels' blocks away.

    record: bytes of one; blocks: of the launch; shared: bytes of shared memory for each.
    """
    parts = 4 if batch > 8 else 2
    stages = min(4, shared // (parts * record), -(-records // (blocks * parts)))
    if not stages:
        raise BenchError(f"{parts} adaLN records of {record} bytes do not fit into {shared} bytes of shared memory")
    return parts, stages


def modulations(conditioning: Tensor, stack: AdalnStack, out: Tensor | None = None) -> Tensor:
    """Every layer's modulation of every vector: bfloat16 [layers, batch, n], on torch's current stream.

    conditioning: [batch, k], bfloat16 or float32, the input of the linears (SiLU already applied). Each vector is
    rotated with the layer's signs, quantised and multiplied, the integer part exactly. `out`, if given, is overwritten.
    Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    device = conditioning.device
    jit.architecture(device)
    batch = len(conditioning)
    fits = conditioning.ndim == 2 and conditioning.shape[1] == stack.k and device == stack.records.device
    if not fits or not conditioning.is_contiguous():
        raise BenchError(f"the conditioning must be contiguous [batch, {stack.k}] on {stack.records.device}")
    if conditioning.dtype not in (torch.bfloat16, torch.float32):
        raise BenchError(f"the conditioning must be bfloat16 or float32, not {conditioning.dtype}")
    shape = (len(stack.records), batch, stack.n)
    out = torch.empty(shape, dtype=torch.bfloat16, device=device) if out is None else out
    if out.shape != shape or out.dtype != torch.bfloat16 or not out.is_contiguous():
        raise BenchError(f"out must be a contiguous bfloat16 {list(shape)}")
    if out.numel():
        _launch(conditioning, stack, out)
    return out


def _launch(conditioning: Tensor, stack: AdalnStack, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both kernels. Returns what passes between them: planes, (step, offset, code sum), projected vectors."""
    device, layers, batch = conditioning.device, len(stack.records), len(conditioning)
    tiles = -(-batch // 8)
    planes = torch.empty(layers, tiles, stack.k // UNIT, 8, 4, 4, dtype=torch.int32, device=device)
    vectors = torch.empty(layers, tiles * 8, 4, device=device)
    low = torch.empty(layers, tiles * 8, RANK, dtype=torch.bfloat16, device=device)
    tensors = (conditioning, stack.signs, stack.mix, stack.down, stack.records, planes, vectors, low, out)
    midrise = stack.levels == "midrise"
    arguments = _Arguments(
        *map(jit.pointer, tensors),
        layers=layers,
        batch=batch,
        channels=stack.n,
        norm=stack.norm,
        cell=sqrt(pi / 2) * gaussian.step(stack.levels, stack.bits),
        rounding=2 ** (stack.bits - 1) + (0.0 if midrise else 0.5),
        shift=-(2**stack.bits - 1) / 2 if midrise else -(2.0 ** (stack.bits - 1)),
    )
    rows, (_, pieces, record) = len(stack.mix), stack.records.shape
    facts = torch.cuda.get_device_properties(device)
    blocks, shared = facts.multi_processor_count, facts.shared_memory_per_block_optin - 2048
    parts, stages = rings(layers * pieces, batch, record, blocks, shared)
    same = (rows, stack.columns, stack.bits, stack.down is not None, stack.center)
    floats = conditioning.dtype == torch.float32
    quantise, product = _kernels(*same, floats, parts, stages, record, device)
    quantise(layers * batch, -(-rows // 4) * stack.columns // 32 * 32, arguments)
    product(blocks, parts * 128, arguments)
    return planes, vectors, low


def unpack_codes(planes: Tensor, bits: int, batch: int) -> Tensor:
    """The codes [layers, batch, k] int64 of the planes that `_launch` returns."""
    words = planes[..., :bits].permute(0, 1, 3, 5, 2, 4)  # layer, tile, vector, plane, unit, word
    weights = 2 ** torch.arange(bits, device=planes.device)
    codes = (unpack_bits(words.flatten(-2)).long() * weights[:, None]).sum(-2)
    return codes.flatten(1, 2)[:, :batch]
