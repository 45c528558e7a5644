"""The conditioning vectors of a batch in two small kernels: silu(time embedding + label embedding), float32."""

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError

WARPS = 8  # of a block, one for each output
POINTERS = ("time", "labels", "frequencies", "first", "bias", "second", "embedding", "hidden", "out")


@dataclass(frozen=True)
class Embedders:
    """Frequencies [waves / 2]; the time embedding's linears: first [width, waves], bias [width], second [width, width];
    embedding [rows, width] of the labels with the second one's bias in it, the last row for labels out of range.

    All contiguous float32 on one device; waves and width are multiples of 128.
    """

    frequencies: Tensor
    first: Tensor
    bias: Tensor
    second: Tensor
    embedding: Tensor


class _Arguments(ctypes.Structure):
    """`struct Embed` of conditioning.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int) for name in ("batch", "rows")),
    )


def source_and_macros(width: int, waves: int) -> tuple[str, dict[str, int]]:
    return jit.read_source("conditioning.cu"), {"WIDTH": width, "WAVES": waves, "WARPS": WARPS, "IMAGES": 8}


@functools.cache
def _kernels(width: int, waves: int, device: torch.device) -> tuple[jit.Kernel, jit.Kernel]:
    source, macros = source_and_macros(width, waves)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    return jit.Kernel(cubin, "embed_time", 0, device), jit.Kernel(cubin, "embed_label", 0, device)


def condition(time: Tensor, labels: Tensor, embedders: Embedders) -> Tensor:
    """silu(second . silu(first . [cos, sin](time * frequencies) + bias) + embedding[label]), on torch's current stream.

    time float32 [B], labels int64 [B] -> float32 [B, width]. Weights must not be written just before: the kernels read
    them ahead of the stream's order. Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    device, batch = time.device, len(time)
    width, waves = embedders.first.shape
    jit.architecture(device)
    if width % 128 or waves % 128:
        raise BenchError(f"an embedding of {waves} waves in {width} channels is not supported: multiples of 128 are")
    if time.dtype != torch.float32 or labels.dtype != torch.int64 or labels.shape != time.shape or time.ndim != 1:
        raise BenchError("the conditioning takes times [B] in float32 and labels [B] in int64")
    hidden, out = torch.empty(2, batch, width, device=device)
    weights = (embedders.frequencies, embedders.first, embedders.bias, embedders.second, embedders.embedding)
    tensors = (time.contiguous(), labels.contiguous(), *weights, hidden, out)
    arguments = _Arguments(*map(jit.pointer, tensors), batch, len(embedders.embedding))
    for kernel in _kernels(width, waves, device):
        kernel(width // WARPS, 32 * WARPS, arguments)
    return out
