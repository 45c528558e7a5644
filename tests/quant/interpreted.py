"""The comparisons of the GPU tests on a CPU, by Triton's interpreter: prints their errors as JSON.

The interpreter keeps bfloat16 as 16 bits and computes with those; here it computes in float32 and rounds the result.
It is chosen when Triton is imported (TRITON_INTERPRET=1), so this is a program of its own. Sizes are small: a program
of a kernel is milliseconds of NumPy.
"""

import json

import numpy as np
import test_quant_fused_gpu as gpu
import torch
from triton import language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from robuq_bench.quant import fused, fused_attention


def wide(handle: TensorHandle) -> np.ndarray:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16 numbers, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def dot(_, a, b, total, *__) -> TensorHandle:
    return TensorHandle(np.matmul(wide(a), wide(b), dtype=np.float32) + total.data, total.dtype.scalar)


def binary(self, a, b, operation, plain=InterpreterBuilder.binary_op) -> TensorHandle:
    if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
        return plain(self, a, b, operation)
    return TensorHandle(narrow(operation(wide(a), wide(b))), tl.bfloat16)


def cast(self, source, kind, plain=InterpreterBuilder.cast_impl) -> TensorHandle:
    if kind.scalar == source.dtype.scalar or tl.bfloat16 not in (kind.scalar, source.dtype.scalar):
        return plain(self, source, kind)
    values = wide(source)
    values = narrow(values) if kind.scalar == tl.bfloat16 else values.astype(interpreter._get_np_dtype(kind))
    return TensorHandle(values, kind.scalar)


def main() -> None:
    InterpreterBuilder.create_dot, InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl = dot, binary, cast
    InterpreterBuilder.create_fp_to_fp = lambda self, source, kind, _: cast(self, source, kind)
    for module in (fused, fused_attention):
        module.wrap_triton = lambda kernel: kernel
    fused.active = lambda _: torch.is_autocast_enabled("cpu")
    gpu.DEVICE = "cpu"
    found = {name: gpu.errors(gpu.layer(case, 384, 24), 30) for name, case in gpu.CASES.items()}
    found["gradients rotated back"] = gpu.errors(gpu.layer(gpu.ROBUQ, 384, 24), 16)
    for tokens, channels in ((32, 24), (320, 72)):  # the second: keys one part after the other
        found[f"attention {tokens}"] = gpu.attention_errors(tokens, channels, images=1, heads=2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
