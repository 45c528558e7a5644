"""The last linear in one kernel: LayerNorm, a linear of each image's own, patches put back into an image."""

import ctypes
import functools

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError

TOKENS = 8  # of a block
MOST_WARPS = 12


class _Arguments(ctypes.Structure):
    """`struct Last` of last.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "weight", "bias", "out")),
        ("side", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


def source_and_macros(width: int, outputs: int, patch: int) -> tuple[str, dict[str, int]]:
    macros = {"WIDTH": width, "OUTPUTS": outputs, "PATCH": patch, "WARPS": _warps(width)}
    return jit.read_source("last.cu"), macros


def _warps(width: int) -> int:
    return min(MOST_WARPS, width // 32)


@functools.cache
def _kernel(width: int, outputs: int, patch: int, device: torch.device) -> jit.Kernel:
    source, macros = source_and_macros(width, outputs, patch)
    return jit.Kernel(jit.compile_cubin(source, jit.architecture(device), macros), "last_linear", 0, device)


def fits(width: int, outputs: int, side: int) -> bool:
    """Whether the kernel takes images of side * side tokens of `width` channels that give `outputs` values each."""
    return width % 32 == 0 and outputs % 16 == 0 and outputs <= 64 and side * side % TOKENS == 0


def last_linear(tokens: Tensor, weight: Tensor, bias: Tensor, patch: int, epsilon: float) -> Tensor:
    """LayerNorm(tokens) @ weight[image].T + bias[image], each token's values a patch of its image.

    tokens bfloat16 [B side^2, width], weight bfloat16 [B, outputs, width], bias float32 [B, outputs] -> float32
    [B, outputs / patch^2, side * patch, side * patch], on torch's current stream. Normalised tokens are rounded to
    bfloat16, sums are float32. Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    jit.architecture(tokens.device)
    batch, outputs, width = weight.shape
    side = round((len(tokens) / batch) ** 0.5)
    if not fits(width, outputs, side) or tokens.shape != (batch * side * side, width) or bias.shape != (batch, outputs):
        raise BenchError(
            f"the last linear does not take {list(tokens.shape)} tokens of {batch} images, {outputs} values"
        )
    halves = tokens.dtype == weight.dtype == torch.bfloat16 and bias.dtype == torch.float32
    if not halves or not all(part.is_contiguous() and part.data_ptr() % 16 == 0 for part in (tokens, weight, bias)):
        raise BenchError("the last linear takes contiguous bfloat16 tokens and weights and a float32 bias")
    out = torch.empty(batch, outputs // patch**2, side * patch, side * patch, device=tokens.device)
    kernel = _kernel(width, outputs, patch, tokens.device)
    arguments = _Arguments(*map(jit.pointer, (tokens, weight, bias, out)), side, epsilon)
    kernel(len(tokens) // TOKENS, 32 * _warps(width), arguments)
    return out
