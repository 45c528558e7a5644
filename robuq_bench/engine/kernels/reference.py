"""What the kernels compute, in plain torch: an exact integer oracle and float64 / float32 references. Any device."""

from math import pi, sqrt

import torch
from torch import Tensor

from robuq_bench.engine.kernels.packing import (
    RANK,
    PackedActivation,
    PackedWeight,
    channel_order,
    unpack_activation,
    unpack_bits,
    unpack_sums,
    unpack_weight,
)
from robuq_bench.engine.kernels.rotation import Rotation, sylvester
from robuq_bench.quant import gaussian


def integer_product(codes: Tensor, ternary: Tensor) -> Tensor:
    """The oracle: sum over k of codes[m, k] * ternary[n, k], int64 [m, n]."""
    if codes.is_cuda:  # no int64 matmul there; float64 is exact below 2^53
        return (codes.double() @ ternary.double().T).long()
    return codes.long() @ ternary.long().T


def bit_serial_product(x: PackedActivation, weight: PackedWeight) -> Tensor:
    """The same by the kernels' identity, from the packed words; int64 [m, n]. Slow: for tests.

    sum_k c w = sum_i 2^i (popc(c_i & P) + popc(c_i & Q)) - sum_k c, with P = [w = +1] and Q = NOT [w = -1].
    """
    natural = unpack_weight(weight)
    p, q = (natural == 1).long(), (natural != -1).long()
    p, q = (torch.nn.functional.pad(plane, (0, x.planes.shape[2] * 128 - x.k)) for plane in (p, q))
    words = x.planes.permute(1, 0, 3, 2, 4).reshape(x.bits, -1, x.planes.shape[2] * 4)
    total = torch.zeros(x.m, weight.n, dtype=torch.int64, device=p.device)
    for plane in reversed(unpack_bits(words)[:, : x.m].long()):
        total = 2 * total + integer_product(plane, p) + integer_product(plane, q)
    return total - x.code_sum[:, None].long()


def gemm_reference(
    x: PackedActivation,
    weight: PackedWeight,
    epilogue: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """float64 [m, n]: alpha (step (sum c w + shift sum w) + offset sum w) + bias + down @ up.T, then the epilogue, then
    the next layer's signs.
    """
    ternary = unpack_weight(weight)
    dot = integer_product(unpack_activation(x), ternary).double()
    sums = ternary.sum(-1).double()
    y = x.step.double()[:, None] * (dot + x.shift * sums)
    if x.offset is not None:
        y = y + x.offset.double()[:, None] * sums
    y = y * weight.alpha[: weight.n].double() + weight.bias[: weight.n].double()
    if x.down is not None and weight.up is not None:
        y = y + branch_input(x).double() @ unpack_up(weight).double().T
    if epilogue == "gelu":
        y = torch.nn.functional.gelu(y, approximate="tanh")
    if epilogue == "gate":
        y = gate.double().repeat_interleave(x.m // len(gate), 0) * y + residual.double()
    return y if weight.next_flips is None else torch.where(weight.next_flips < 0, -y, y)


def branch_input(x: PackedActivation) -> Tensor:
    """What tokens bring for the low-rank branch, bfloat16 [m, 16]."""
    return x.down if x.down.dtype == torch.bfloat16 else unpack_sums(x.down, x.m).to(torch.bfloat16)


def sums_reference(y: Tensor, next_down: Tensor) -> Tensor:
    """float64 [m, 16]: what `gemm` adds to its sums for signed outputs y [m, n], but for rounding to integers."""
    pairs = next_down.view(torch.int32).reshape(-1, 2, 8, 4, 2, 2)  # 32 channels, h, g, t, pair, rank half
    matrix = pairs.permute(5, 2, 0, 3, 1, 4).contiguous().view(torch.bfloat16).reshape(RANK, -1)
    return y.double() @ matrix.double().T


def unpack_up(weight: PackedWeight) -> Tensor:
    """The low-rank branch's second factor, bfloat16 [n, 16]."""
    pairs = weight.up.reshape(-1, 8, 4, 2).permute(0, 1, 3, 2).reshape(-1, 8).contiguous()
    permuted = pairs.view(torch.bfloat16)
    natural = torch.empty_like(permuted)
    natural[channel_order(len(permuted)).to(permuted.device)] = permuted
    return natural[: weight.n]


def rotate_quantize_reference(
    x: Tensor,
    rotation: Rotation,
    bits: int,
    *,
    pre: str = "none",
    modulation: tuple[Tensor, Tensor] | None = None,
    center: bool = False,
    levels: str = "midrise",
    epsilon: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    rounded: torch.dtype | None = None,
    tf32: bool = False,
) -> dict[str, Tensor]:
    """The row-wise kernel in torch, in `dtype`: cells [m, n] (before rounding), codes, step, offset, rotated [m, n].

    As the kernels round (`rowwise.roundings`): what precedes the rotation to `rounded`; with tf32, sums over columns
    to 11 bits.
    """
    y = x.to(dtype)
    if pre == "gelu":
        y = torch.nn.functional.gelu(y, approximate="tanh")
    if pre == "modulate":
        scale, shift = (part.to(dtype).repeat_interleave(len(x) // len(part), 0) for part in modulation)
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=epsilon) * (1 + scale) + shift
    if rounded:
        y = y.to(rounded).to(dtype)
    y = torch.where(unpack_bits(rotation.signs), -y, y).reshape(len(x), -1, rotation.columns)
    y = y @ sylvester(rotation.columns).to(y)
    if tf32:
        y = (y.float().view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32).to(dtype)
    y = rotation.mix.to(dtype).T @ y
    rotated = (y * rotation.norm).reshape(len(x), -1)
    offset = rotated.mean(-1, keepdim=True) if center else torch.zeros_like(rotated[:, :1])
    y = rotated - offset
    step = y.abs().mean(-1, keepdim=True) * sqrt(pi / 2) * gaussian.step(levels, bits)
    step = step.clamp_min(1e-12)
    cells = y / step + 2 ** (bits - 1) + (0.5 if levels == "midtread" else 0.0)
    codes = cells.floor().clamp(0, 2**bits - 1).long()
    return {"cells": cells, "codes": codes, "step": step[:, 0], "offset": offset[:, 0], "rotated": rotated}
