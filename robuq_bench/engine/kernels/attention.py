"""Softmax attention of short sequences (an image's tokens), for the few images where latency rules."""

import ctypes
import functools
from math import e, log2, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.choice import limits
from robuq_bench.errors import BenchError

LONGEST = 256  # tokens of an image: a thread holds the scores of a share of them
PARTS = 2  # such shares, each for four warps


class _Arguments(ctypes.Structure):
    """`struct Attention` of attention.cu."""

    _fields_ = (("qkv", ctypes.c_void_p), ("out", ctypes.c_void_p), ("scale", ctypes.c_float))


def shared_bytes(tokens: int, dim: int) -> int:
    """Shared memory of a block: 64 queries, all keys and values of a head, rows an odd number of 16 bytes long."""
    pitch = (dim // 8 | 1) * 16
    exchange = (PARTS - 1) * (dim // 2 + 4) * 128 * 4
    return 64 * pitch + max(2 * tokens * pitch, exchange)


def fits(tokens: int, dim: int, shared: int) -> bool:
    """Whether the kernel takes heads of `dim` channels over images of `tokens` tokens."""
    shaped = tokens % 64 == 0 and tokens <= LONGEST and dim % 8 == 0 and dim <= 128
    return shaped and shared_bytes(tokens, dim) <= shared


def faster(images: int, tokens: int, heads: int, dim: int, device: torch.device) -> bool:
    """Whether the kernel takes this shape and beats the library's: as long as all its blocks run at once."""
    processors, shared = limits(device)
    return fits(tokens, dim, shared) and images * heads * tokens // 64 <= processors


@functools.cache
def _kernel(heads: int, dim: int, tokens: int, device: torch.device) -> jit.Kernel:
    macros = {"HEADS": heads, "DIM": dim, "TOKENS": tokens, "PARTS": PARTS}
    cubin = jit.compile_cubin(jit.read_source("attention.cu"), jit.architecture(device), macros)
    return jit.Kernel(cubin, "attention", shared_bytes(tokens, dim), device)


def attention(qkv: Tensor, images: int, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v of each image and head, on torch's current stream.

    qkv bfloat16 [images T, 3 width] -> bfloat16 [images T, width]. Sums and softmax are float32, its weights rounded to
    bfloat16. Raises BenchError on shapes that `fits` refuses.
    """
    tokens, width = len(qkv) // images, qkv.shape[1] // 3
    dim = width // heads
    if not fits(tokens, dim, limits(qkv.device)[1]):
        raise BenchError(f"the attention kernel does not take {tokens} tokens an image, {dim} channels a head")
    if qkv.dtype != torch.bfloat16 or not qkv.is_contiguous() or qkv.data_ptr() % 16:
        raise BenchError("the attention kernel takes contiguous bfloat16 tokens, aligned to 16 bytes")
    out = torch.empty(len(qkv), width, dtype=torch.bfloat16, device=qkv.device)
    arguments = _Arguments(qkv.data_ptr(), out.data_ptr(), log2(e) / sqrt(dim))
    _kernel(heads, dim, tokens, qkv.device)(images * heads * tokens // 64, PARTS * 128, arguments)
    return out
