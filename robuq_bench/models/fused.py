"""A transformer block's row-wise parts on a GPU under bfloat16 autocast, without torch.compile and its start-up time.

Written plainly, modulation, gates and residuals are some twenty passes over the tokens in a block, and each block
computes the tied embedding of time and label again. Here each place between two linears is one kernel in forward and
one in backward, and the embedding is computed once. Equal to the plain blocks within bfloat16 rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPAN = 16
"""Tokens of a program."""
ELEMENTS = 4096
"""Values of a program of GELU."""


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` [B, T, N] and the stride between its rows, which is one for all: a slice of wider rows is not copied."""
    stride = x.stride(1)
    if x.stride() != (x.shape[1] * stride, stride, 1):
        return x.contiguous(), x.shape[2]
    return x, stride


class _Between(torch.autograd.Function):
    """(hidden, out) of x, branch [B, T, N] bfloat16: hidden = x + gate branch, out = LN(hidden) (1 + scale) + shift.

    gate, shift, scale [B, N] bfloat16 are slices of rows of one length. Without a branch hidden is x; without scale
    there is no normalisation, and out is None.
    """

    @staticmethod
    def forward(ctx, x, branch, gate, shift, scale, eps):
        from robuq_bench.models import fused_kernels as kernels

        (images, tokens, n), adds, norms = x.shape, branch is not None, scale is not None
        hidden = torch.empty_like(x) if adds else x.view_as(x)
        out = torch.empty_like(x) if norms else None
        ctx.grid = (images, -(-tokens // SPAN))
        ctx.constants = {
            "N": n,
            "BLOCK": _power(n),
            "STRIDE": (scale if norms else gate).stride(0),
            "SPAN": SPAN,
            "EPS": eps,
            "ADDS": adds,
            "NORMS": norms,
            "num_warps": 1 if n <= 512 else 4,  # one warp sums a row without a barrier
        }
        given = [x if part is None else part for part in (branch, gate, shift, scale, hidden, out)]
        kernels.forward[ctx.grid](x, *given, tokens, **ctx.constants)
        ctx.save_for_backward(hidden if norms else None, branch, gate, scale)
        return hidden, out

    @staticmethod
    def backward(ctx, from_hidden, from_out):
        from robuq_bench.models import fused_kernels as kernels

        hidden, branch, gate, scale = ctx.saved_tensors
        adds, norms = branch is not None, scale is not None
        shape = (branch if adds else hidden).shape
        from_hidden = from_hidden.contiguous()
        from_out, outer = _rows(from_out) if norms else (None, 0)
        to_x = torch.empty_like(from_hidden)
        to_branch = torch.empty_like(from_hidden) if adds else None
        images, parts = ctx.grid
        sums = from_hidden.new_empty(parts, 3, images, shape[2], dtype=torch.float32)
        given = (hidden, branch, gate, scale, from_hidden, from_out, to_x, to_branch)
        given = [from_hidden if part is None else part for part in given]
        kernels.backward[ctx.grid](*given, sums, shape[1], OUTER=outer, **ctx.constants)
        to_gate, to_shift, to_scale = sums.sum(0).to(torch.bfloat16)
        return (
            to_x,
            to_branch,
            to_gate if adds else None,
            to_shift if norms else None,
            to_scale if norms else None,
            None,
        )


class _Gelu(torch.autograd.Function):
    """GELU, tanh approximation, bfloat16."""

    @staticmethod
    def forward(ctx, x):
        from robuq_bench.models import fused_kernels as kernels

        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        kernels.gelu[(-(-x.numel() // ELEMENTS),)](x, out, x.numel(), BLOCK=ELEMENTS, num_warps=8)
        return out

    @staticmethod
    def backward(ctx, gradient):
        from robuq_bench.models import fused_kernels as kernels

        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        grid = (-(-x.numel() // ELEMENTS),)
        gradient, outer = _rows(gradient)
        constants = {"N": x.shape[-1], "OUTER": outer, "BLOCK": ELEMENTS, "num_warps": 8}
        kernels.gelu_backward[grid](x, gradient, out, x.numel(), **constants)
        return out


class Conditioning:
    """SiLU of the tied embedding of time and label [B, N] bfloat16, for the forward pass that is under way."""

    value: Tensor

    def see(self, model: nn.Module, _: tuple, arguments: dict) -> None:
        embedder = model.transformer_blocks[0].norm1.emb
        found = embedder(arguments["timestep"], arguments["class_labels"], hidden_dtype=torch.bfloat16)
        self.value = F.silu(found)


def _forward(block: nn.Module, conditioning: Conditioning, tokens: Tensor, *_: object, **__: object) -> Tensor:
    """The block's output, tokens bfloat16 [B, T, N] both."""
    modulation = block.norm1.linear(conditioning.value)
    shift, scale, gate, next_shift, next_scale, next_gate = modulation.chunk(6, dim=1)
    hidden, out = _Between.apply(tokens.contiguous(), None, None, shift, scale, block.norm1.norm.eps)
    out = block.attn1(out)
    hidden, out = _Between.apply(hidden, out.contiguous(), gate, next_shift, next_scale, block.norm3.eps)
    inner, _, last = block.ff.net
    out = last(_Gelu.apply(inner.proj(out)))
    return _Between.apply(hidden, out.contiguous(), next_gate, None, None, 0.0)[0]


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """In the context all blocks of a denoiser run fused: on a CUDA device, under bfloat16 autocast, sizes alike."""
    conditioning = Conditioning()
    hook = model.register_forward_pre_hook(conditioning.see, with_kwargs=True)
    for block in model.transformer_blocks:
        block.forward = partial(_forward, block, conditioning)
    try:
        yield
    finally:
        hook.remove()
        for block in model.transformer_blocks:
            del block.forward
