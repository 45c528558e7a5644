"""Attention with 8-bit operands on a GPU: nothing of size [T, T] reaches memory.

The arithmetic is that of robuq_bench.quant.attention; integer codes are multiplied, and scales applied afterwards.
Gradients pass straight through every rounding, and through no scale:

    dV = P_q^T dO,   dS = P * (dP - m) with dP = dO V_q^T and m = sum_k P dP = dO . (P V_q),   dQ = dS K_q / sqrt(d)
"""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

WIDEST = 128
"""Channels of a head that the kernels take."""
ROWS = 64
"""Queries or keys that one program owns, and that it walks through at a time."""


def covers(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels take these operands: self-attention, heads of 16 to 128 channels."""
    return query.shape == key.shape == value.shape and 16 <= query.shape[-1] <= WIDEST


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _columns(channels: int) -> dict[str, int]:
    """Channels as a power of two plus a smaller one: 72 = 64 + 8 takes 80 columns and not 128."""
    first = 1 << (channels.bit_length() - 1)
    rest = channels - first
    return {"FIRST": first, "SECOND": max(16, _power(rest)) if rest else 0}


def _rows(tokens: int) -> int:
    return min(ROWS, max(16, _power(tokens)))


def _blocks(tokens: int, channels: int) -> dict[str, int | float]:
    """Constants of a kernel over scores. The scale is one: torch.compile hands on a float argument as a double."""
    rows = _rows(tokens)
    return {"SCALE": channels**-0.5, "ROWS": rows, "CHUNK": rows, "num_warps": 4}


@triton_op("robuq_bench::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention [B, T, heads, d] of operands [B, heads, T, d], bfloat16 with equal strides, and what backward needs.

    That is: the same with unrounded probabilities; the codes bfloat16 [3, B * heads, T, columns]; their steps, float32
    [2, B * heads, T] of tokens and [B * heads, columns] of channels; the rows' log-sums, float32 [B * heads, T].
    """
    from robuq_bench.quant import fused_attention_kernels as kernels

    batch, heads, tokens, channels = query.shape
    columns = _columns(channels)
    width, count = sum(columns.values()), batch * heads
    out, soft = (query.new_empty(batch, tokens, heads, channels) for _ in range(2))
    codes = query.new_empty(3, count, tokens, width)
    token_steps = query.new_empty(2, count, tokens, dtype=torch.float32)
    channel_steps = query.new_empty(count, width, dtype=torch.float32)
    logs = query.new_empty(count, tokens, dtype=torch.float32)
    rows = _rows(tokens)
    blocks, sizes = -(-tokens // rows), (tokens, channels, heads)
    strides = query.stride()[:3]
    wrap_triton(kernels.encode_tokens)[(count, blocks, 2)](
        query, key, codes, token_steps, *sizes, *strides, ROWS=rows, num_warps=4, **columns
    )
    wrap_triton(kernels.encode_channels)[(count, width // 16)](
        value, codes, channel_steps, *sizes, *strides, ROWS=rows, COLUMNS=16, WIDTH=width, num_warps=2
    )
    given = (codes, token_steps, channel_steps, out, soft, logs, *sizes)
    wrap_triton(kernels.forward)[(count, blocks)](*given, **_blocks(tokens, channels), **columns)
    return out, soft, codes, token_steps, channel_steps, logs


@triton_op("robuq_bench::attention_gradient", mutates_args=())
def attention_gradient(
    gradient: Tensor, soft: Tensor, codes: Tensor, token_steps: Tensor, channel_steps: Tensor, logs: Tensor
) -> Tensor:
    """Gradients [B, T, 3, heads, d] bfloat16 of query, key, value; `gradient` contiguous [B, T, heads, d]."""
    from robuq_bench.quant import fused_attention_kernels as kernels

    batch, tokens, heads, channels = gradient.shape
    out = gradient.new_empty(batch, tokens, 3, heads, channels)
    means = torch.empty_like(logs)
    rows = _rows(tokens)
    cut = (batch * heads, -(-tokens // rows))
    given = (codes, token_steps, channel_steps, gradient)
    sizes = (tokens, channels, heads)
    constants = _blocks(tokens, channels) | _columns(channels)
    wrap_triton(kernels.backward_queries)[cut](*given, soft, logs, means, out, *sizes, **constants)
    wrap_triton(kernels.backward_keys)[cut](*given, logs, means, out, *sizes, **constants)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        out, *kept = attention(query, key, value)
        ctx.save_for_backward(*kept)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient):
        joint = attention_gradient(gradient.transpose(1, 2).contiguous(), *ctx.saved_tensors)
        return tuple(part.transpose(1, 2) for part in joint.unbind(2))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention [B, heads, T, d] of operands of that shape, in bfloat16."""
    operands = [x.to(torch.bfloat16) for x in (query, key, value)]
    if any(x.stride() != operands[0].stride() or x.stride(-1) != 1 for x in operands):
        operands = [x.contiguous() for x in operands]
    return _Attention.apply(*operands)
