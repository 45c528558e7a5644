"""Attention with 8-bit operands on a GPU: nothing of size [T, T] reaches memory.

The arithmetic is that of robuq_bench.quant.attention; integer codes are multiplied, and scales applied afterwards.
Gradients pass straight through every rounding, and through no scale:

    dV = P_q^T dO,   dS = P * (dP - m) with dP = dO V_q^T and m = sum_k P dP,   dQ = dS K_q / sqrt(d)
"""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

NARROWEST, WIDEST = 16, 128
"""Channels of a head that the kernels take; and at least so many tokens."""
WHOLE, PART = 256, 128
"""Keys that a program of the forward pass sees at once: all of them, or parts one after the other."""


def covers(tokens: int, channels: int) -> bool:
    """Whether the kernels take so many tokens, which their tiles divide, and heads of so many channels."""
    return tokens % NARROWEST == 0 and NARROWEST <= channels <= WIDEST


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _columns(channels: int) -> dict[str, int]:
    """Channels as a power of two plus a smaller one: 72 = 64 + 8 takes 80 columns and not 128."""
    first = 1 << (channels.bit_length() - 1)
    rest = channels - first
    return {"FIRST": first, "SECOND": max(16, _power(rest)) if rest else 0}


def _sizes(tokens: int, heads: int, channels: int) -> dict[str, int]:
    return {"T": tokens, "CHANNELS": channels, "HEADS": heads, **_columns(channels)}


def _divisor(tokens: int, most: int) -> int:
    """The largest power of two that divides the tokens, `most` at most."""
    return min(tokens & -tokens, most)


def _tile(tokens: int, rows: int, chunk: int) -> dict[str, int]:
    """Rows of a program, and how much of the other side it sees at once; at most as many as given."""
    rows, chunk = _divisor(tokens, rows), _divisor(tokens, chunk)
    return {"ROWS": rows, "CHUNK": chunk, "num_warps": 8 if rows * chunk > 64 * 64 else 4}


@triton_op("robuq_bench::attention", mutates_args=())
def attention(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attention [B, T, heads, d] of operands [B, T, 3, heads, d], bfloat16, contiguous, and what backward needs.

    That is: the codes bfloat16 [3, B * heads, T, columns]; their steps, float32 [2, B * heads, T] of tokens and
    [B * heads, columns] of channels; base-2 logarithms of the rows' sums, float32 [B * heads, T].
    """
    from robuq_bench.quant import fused_attention_kernels as kernels

    batch, tokens, _, heads, channels = qkv.shape
    sizes, count = _sizes(tokens, heads, channels), batch * heads
    width = sizes["FIRST"] + sizes["SECOND"]
    out = qkv.new_empty(batch, tokens, heads, channels)
    codes = qkv.new_empty(3, count, tokens, width)
    token_steps = qkv.new_empty(2, count, tokens, dtype=torch.float32)
    channel_steps = qkv.new_empty(count, width, dtype=torch.float32)
    logs = qkv.new_empty(count, tokens, dtype=torch.float32)
    rows = _divisor(tokens, WHOLE)
    wrap_triton(kernels.encode)[(count, 3)](
        qkv, codes, token_steps, channel_steps, ROWS=rows, num_warps=8 if rows > 64 else 4, **sizes
    )
    tile = _tile(tokens, 128, WHOLE if tokens <= WHOLE else PART)
    wrap_triton(kernels.forward)[(count, -(-tokens // tile["ROWS"]))](
        codes, token_steps, channel_steps, out, logs, SCALE=channels**-0.5, **tile, **sizes
    )
    return out, codes, token_steps, channel_steps, logs


@triton_op("robuq_bench::attention_gradient", mutates_args=())
def attention_gradient(
    gradient: Tensor, codes: Tensor, token_steps: Tensor, channel_steps: Tensor, logs: Tensor
) -> Tensor:
    """Gradients [B, T, 3, heads, d] bfloat16 of query, key, value; `gradient` [B, T, heads, d], of any stride in T."""
    from robuq_bench.quant import fused_attention_kernels as kernels

    batch, tokens, heads, channels = gradient.shape
    outer = gradient.stride(1)
    if gradient.stride() != (tokens * outer, outer, channels, 1):
        gradient, outer = gradient.contiguous(), heads * channels
    out = gradient.new_empty(batch, tokens, 3, heads, channels)
    means = torch.empty_like(logs)
    given = (codes, token_steps, channel_steps, gradient, logs, means, out)
    for kernel, tile in (
        (kernels.backward_queries, _tile(tokens, 128, PART)),
        (kernels.backward_keys, _tile(tokens, 128, 64)),
    ):
        wrap_triton(kernel)[(batch * heads, -(-tokens // tile["ROWS"]))](
            *given, SCALE=channels**-0.5, OUTER=outer, **tile, **_sizes(tokens, heads, channels)
        )
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv):
        out, *kept = attention(qkv)
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return attention_gradient(gradient, *ctx.saved_tensors)


def attend(joint: Tensor) -> Tensor:
    """Attention [B, heads, T, d] of queries, keys and values [3, B, heads, T, d], in bfloat16."""
    qkv = joint.permute(1, 3, 0, 2, 4).to(torch.bfloat16).contiguous()  # no copy of what one linear has made
    return _Attention.apply(qkv).transpose(1, 2)
