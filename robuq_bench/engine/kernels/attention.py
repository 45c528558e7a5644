"""Softmax attention of an image's tokens: two kernels, and which of them, or the library's, takes a shape.

`ShortKernel` is for the few images where latency rules; `StreamKernel`, on Hopper, for all others.
"""

import ctypes
import functools
from dataclasses import dataclass
from math import e, log2, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.choice import limits
from robuq_bench.engine.kernels.tensor_map import BYTES, tensor_map
from robuq_bench.errors import BenchError

STATIC = 1024  # bytes of shared memory that `StreamKernel` takes besides


@dataclass(frozen=True)
class Shape:
    """`heads` heads of `dim` channels over images of `tokens` tokens."""

    tokens: int
    heads: int
    dim: int


class _Short(ctypes.Structure):
    """`struct Attention` of attention.cu."""

    _fields_ = (("qkv", ctypes.c_void_p), ("out", ctypes.c_void_p), ("scale", ctypes.c_float))


class _Stream(ctypes.Structure):
    """`struct Attention` of attention_wgmma.cu, whose size is a multiple of 64."""

    _fields_ = (
        ("maps", ctypes.c_ubyte * (2 * BYTES)),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("items", ctypes.c_int),
        ("gap", ctypes.c_ubyte * 48),
    )


@dataclass(frozen=True)
class ShortKernel:
    """mma.sync, any GPU: a block takes 64 queries of a head; `parts` warps share the keys."""

    shape: Shape
    parts: int = 2
    files = ("attention_common.cuh", "attention.cu")

    @property
    def threads(self) -> int:
        return self.parts * 128

    @property
    def macros(self) -> dict[str, int]:
        return {"PARTS": self.parts}

    @property
    def shared_bytes(self) -> int:
        """64 queries, all keys and values of a head, rows an odd number of 16 bytes long; then the exchange."""
        pitch = (self.shape.dim // 8 | 1) * 16
        exchange = (self.parts - 1) * (self.shape.dim // 2 + 4) * 128 * 4
        return 64 * pitch + max(2 * self.shape.tokens * pitch, exchange)

    def fits(self, arch: str, shared: int) -> bool:
        """Whether it runs on `arch` with `shared` bytes a block: a thread holds the scores of its share of the keys."""
        tokens, dim = self.shape.tokens, self.shape.dim
        return tokens % 64 == 0 and tokens <= 256 and dim % 8 == 0 and dim <= 128 and self.shared_bytes <= shared

    def blocks(self, images: int, processors: int) -> int:
        return images * self.shape.heads * self.shape.tokens // 64

    def arguments(self, qkv: Tensor, out: Tensor, images: int) -> ctypes.Structure:
        return _Short(qkv.data_ptr(), out.data_ptr(), log2(e) / sqrt(self.shape.dim))


@dataclass(frozen=True)
class StreamKernel:
    """wgmma and tensor maps: a block goes through its items, `queries` of a head each, the next being on its way."""

    shape: Shape
    queries: int
    stages = 2
    threads = 384
    files = ("gemm_hopper.cuh", "attention_common.cuh", "attention_wgmma.cu")

    @property
    def macros(self) -> dict[str, int]:
        return {"QUERIES": self.queries, "STAGES": self.stages, "PART": 128}

    @property
    def shared_bytes(self) -> int:
        """Queries, keys and values of all stages."""
        return self.stages * (self.queries + 2 * self.shape.tokens) * self.shape.dim * 2

    def fits(self, arch: str, shared: int) -> bool:
        """The same; `arch` must be Hopper's."""
        shaped = self.shape.tokens == 256 and self.shape.dim in (64, 72)
        return arch == "sm_90a" and shaped and self.shared_bytes + STATIC <= shared

    def items(self, images: int) -> int:
        return images * self.shape.heads * self.shape.tokens // self.queries

    def blocks(self, images: int, processors: int) -> int:
        return min(self.items(images), processors)

    def arguments(self, qkv: Tensor, out: Tensor, images: int) -> ctypes.Structure:
        head, rest = tensor_map(qkv, 128, 64, swizzled=True), tensor_map(qkv, 128, 8, swizzled=False)
        maps = (ctypes.c_ubyte * (2 * BYTES))(*head, *rest)
        return _Stream(maps, out.data_ptr(), log2(e) / sqrt(self.shape.dim), self.items(images))


Kernel = ShortKernel | StreamKernel


def rule(images: int, shape: Shape, arch: str, processors: int, shared: int) -> Kernel | None:
    """What takes a shape, from the measurements in docs/engine.md; None: the library's.

    A few images: the short kernel, as long as all its blocks run at once. More: the streaming one, in halves of an
    image until each multiprocessor has two heads to do.
    """
    short = ShortKernel(shape)
    stream = StreamKernel(shape, 128 if images * shape.heads <= 2 * processors else 256)
    order = [short, stream] if short.blocks(images, processors) <= processors else [stream]
    return next((kernel for kernel in order if kernel.fits(arch, shared)), None)


def chosen(images: int, shape: Shape, device: torch.device) -> Kernel | None:
    """`rule` on a device."""
    return rule(images, shape, jit.architecture(device), *limits(device))


def explain(images: int, shape: Shape, device: torch.device) -> str:
    """One line: what takes a shape, by rule."""
    return f"{chosen(images, shape, device) or 'scaled_dot_product_attention of torch'}, by rule"


def compiled(kernel: Kernel, arch: str) -> bytes:
    """Machine code for `arch`."""
    shape = kernel.shape
    macros = {"HEADS": shape.heads, "DIM": shape.dim, "TOKENS": shape.tokens} | kernel.macros
    return jit.compile_cubin(jit.read_source(*kernel.files), arch, macros)


@functools.cache
def _loaded(kernel: Kernel, device: torch.device) -> jit.Kernel:
    return jit.Kernel(compiled(kernel, jit.architecture(device)), "attention", kernel.shared_bytes, device)


def attention(qkv: Tensor, images: int, heads: int, kernel: Kernel | None = None, out: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v of each image and head, on torch's current stream.

    qkv bfloat16 [images T, 3 width] -> bfloat16 [images T, width]. Sums and softmax are float32, its weights rounded to
    bfloat16. kernel: the one of the rule unless given. Raises BenchError on shapes that no kernel here, or not the
    given one, takes.
    """
    device, width = qkv.device, qkv.shape[1] // 3
    shape = Shape(len(qkv) // images, heads, width // heads)
    kernel = kernel or chosen(images, shape, device)
    processors, shared = limits(device)
    if kernel is None or kernel.shape != shape or not kernel.fits(jit.architecture(device), shared):
        raise BenchError(
            f"the attention kernel does not take {shape.tokens} tokens an image, {shape.dim} channels a head"
        )
    if qkv.dtype != torch.bfloat16 or not qkv.is_contiguous() or qkv.data_ptr() % 16:
        raise BenchError("the attention kernels take contiguous bfloat16 tokens, aligned to 16 bytes")
    out = torch.empty(len(qkv), width, dtype=torch.bfloat16, device=device) if out is None else out
    launch = _loaded(kernel, device)
    launch(kernel.blocks(images, processors), kernel.threads, kernel.arguments(qkv, out, images))
    return out
