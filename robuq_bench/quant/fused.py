"""The quantised linear on a GPU under bfloat16 autocast: few kernels, and large products only.

The plain path (robuq_bench.quant.linear) defines the arithmetic; this one equals it within bfloat16 rounding.

    forward    X = [x_hat | b | 1], W = [W_q | up | bias]:   y = X W^T,   b = x (down H^T s)^T
    backward   [dW | dup | dbias] = dy^T X,   ddown = ((dy up)^T x s) H
               dx = dy ((W_q + up down) H^T s): the weights are rotated back, not the gradients, where that is less
               work and no mask of an estimator stands between them
"""

import torch
from torch import Tensor, nn
from torch.library import triton_op, wrap_triton

from robuq_bench.quant import gaussian
from robuq_bench.quant.hadamard import BLOCK, factors, signs_matrix
from robuq_bench.quant.quantiser import Quantiser

RULES = {"mean_abs": 0, "absmean": 0, "rms": 1, "absmax": 2, "minmax": 3, "conditional_mean": 4}
GIVEN = 5
ESTIMATORS = {"ste": 0, "trust": 1, "clipped": 2}
SIDE = 128
"""Rows of a tile: see robuq_bench.quant.fused_kernels."""
MULTIPROCESSORS = 132
"""Of an H100: fewer programs than that leave some idle."""


Rule = tuple[int, int]
"""What of a quantiser its kernels are compiled for: statistic and estimator."""


def rule(quantiser: Quantiser) -> Rule:
    """The rule of a quantiser that `covers` accepts."""
    spec = quantiser.spec
    statistic = GIVEN if spec.granularity == "tensor" else RULES[spec.scale]
    return statistic, ESTIMATORS[spec.estimator]


def numbers(quantiser: Quantiser) -> list[float]:
    """Factor, low, high, shift: cell = factor * statistic, codes low..high, value = (code + shift) * step."""
    spec, bits, codes = quantiser.spec, quantiser.bits, quantiser.grid
    if spec.scale in ("mean_abs", "rms"):
        sigma = gaussian.MEAN_ABS_TO_SIGMA if spec.scale == "mean_abs" else 1.0
        factor = sigma * gaussian.step(spec.format, bits, spec.step) * spec.stretch
    elif spec.scale == "absmax":
        factor = 1 / (2 ** (bits - 1) - (spec.format == "midtread"))
    elif spec.scale == "minmax":
        factor = 1 / (2**bits - 1)
    elif spec.scale == "conditional_mean":
        factor = 2 * spec.threshold
    else:
        factor = 1.0 if spec.format == "ternary" else (2 ** (bits - 1) - 1) ** -0.5
    return [factor, codes.low, codes.high, codes.shift]


def covers(quantiser: Quantiser | nn.Module | None, rows: str) -> bool:
    """Whether the kernels have this quantiser; `rows`: the granularity ("token", "channel") that they work in."""
    if not isinstance(quantiser, Quantiser):
        return False
    spec = quantiser.spec
    if spec.centre or spec.format == "lloyd_max" or spec.scale not in RULES:
        return False
    whole = rows == "channel" and spec.granularity == "tensor" and spec.scale in ("mean_abs", "absmean")
    return spec.granularity == rows or whole


def tables(inputs: int, width: int | None) -> tuple[Tensor, Tensor] | None:
    """(left, right): factors of the rotation of `inputs` channels in blocks of `width`, +-1 in bfloat16.

    left [SIDE, SIDE] is block diagonal, empty where blocks need no left factor; both are empty without a rotation.
    None: the kernels do not cover this width.
    """
    left = right = torch.empty(0, 0)
    if width is not None and width <= BLOCK:
        right = signs_matrix(width)
    elif width is not None:
        first, right = (signs_matrix(len(factor)) for factor in factors(width))
        if len(first) <= SIDE:
            left = torch.zeros(SIDE, SIDE)
            copies = torch.block_diag(*[first] * (SIDE // len(first)))
            left[: len(copies), : len(copies)] = copies
    fits = width is None or (len(right) in (16, 32, 64, 128) and inputs // len(right) <= SIDE)
    return (left.to(torch.bfloat16), right.to(torch.bfloat16)) if fits else None


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def active(x: Tensor) -> bool:
    """Whether `x` is to be multiplied in bfloat16 on a GPU."""
    return x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16


@triton_op("robuq_bench::quantise_rows", mutates_args=())
def quantise_rows(
    x: Tensor,
    given: Tensor,
    up: Tensor | None,
    bias: Tensor | None,
    rank: int,
    extra: int,
    one: bool,
    numbers: Tensor,
    statistic: int,
    estimator: int,
) -> tuple[Tensor, Tensor]:
    """(bfloat16 [rows, n + extra], mask int8 [rows, n] or empty): each row of x [rows, n] fake-quantised, then the
    row of `up`, the bias (or 1) and zeros."""
    from robuq_bench.quant import fused_kernels as kernels

    rows, n = x.shape
    out = x.new_empty(rows, n + extra, dtype=torch.bfloat16)
    mask = x.new_empty((rows, n) if estimator else (0, 0), dtype=torch.int8)
    wrap_triton(kernels.quantise_rows)[(rows,)](
        x,
        out,
        mask if estimator else x,
        given,
        x if up is None else up,
        x if bias is None else bias,
        x.stride(0),
        out.stride(0),
        0 if up is None else up.stride(0),
        0 if up is None else up.stride(1),
        numbers,
        N=n,
        BLOCK=_power(n),
        RANK=0 if up is None else rank,
        EXTRA=extra,
        BIAS=bias is not None,
        ONE=one,
        RULE=statistic,
        ESTIMATOR=estimator,
        num_warps=4 if n <= 2048 else 8,
    )
    return out, mask


@triton_op("robuq_bench::rotate_quantise", mutates_args=())
def rotate_quantise(
    x: Tensor,
    branch: Tensor | None,
    signs: Tensor | None,
    left: Tensor,
    right: Tensor,
    rank: int,
    extra: int,
    numbers: Tensor,
    statistic: int,
    estimator: int,
) -> tuple[Tensor, Tensor]:
    """([x_hat | branch | 1 | 0] bfloat16 [rows, n + extra], mask int8 [rows, n] or empty); x_hat = Q((x * signs) H).

    x [rows, n], branch [rows, rank] bfloat16.
    """
    from robuq_bench.quant import fused_kernels as kernels

    rows, n = x.shape
    out = x.new_empty(rows, n + extra)
    mask = x.new_empty((rows, n) if estimator else (0, 0), dtype=torch.int8)
    tile = _tile(rows, n, left, right)
    wrap_triton(kernels.rotate_quantise)[(_programs(rows, tile),)](
        x,
        x if branch is None else branch,
        out,
        mask if estimator else x,
        x if signs is None else signs,
        left,
        right,
        rows,
        numbers,
        N=n,
        POOL=_power(tile["GROUP"]),
        RANK=rank,
        EXTRA=extra,
        SIGNED=signs is not None,
        RULE=statistic,
        ESTIMATOR=estimator,
        **tile,
    )
    return out, mask


def _tile(rows: int, n: int, left: Tensor, right: Tensor) -> dict[str, int | float | bool]:
    """Constants of a kernel that rotates rows of n values: tiles of whole rows, SIDE high.

    A program takes so many tiles that the left factor is loaded for half as many values as it has itself, where that
    leaves every multiprocessor a program (measured: neither more nor fewer are faster).
    """
    width, mixed = len(right), len(left) > 0
    height = n // width
    group = SIDE // height
    return {
        "LEFT": height,
        "RIGHT": width,
        "SIDE": SIDE,
        "GROUP": group,
        "TILES": max(1, min(SIDE // width // 2, rows // (group * MULTIPROCESSORS))),
        "SCALE": (n if mixed else width) ** -0.5,
        "MIX_LEFT": mixed,
        "num_warps": 4 if width <= 32 else 8,
    }


def _programs(rows: int, tile: dict[str, int | float | bool]) -> int:
    return -(-rows // (tile["GROUP"] * tile["TILES"]))


@triton_op("robuq_bench::rotate", mutates_args=())
def rotate(
    x: Tensor,
    mask: Tensor | None,
    signs: Tensor | None,
    left: Tensor,
    right: Tensor,
    n: int,
    inverse: bool,
    tail: Tensor | None = None,
) -> Tensor:
    """(x[:, :n] * signs) H, float32; or, `inverse`, ((x[:, :n] * mask) H^T) * signs, bfloat16. Both [rows, n].

    Columns of `tail` [rows, a power of two], bfloat16, follow when it is given.
    """
    from robuq_bench.quant import fused_kernels as kernels

    rows, columns = len(x), 0 if tail is None else tail.shape[1]
    out = x.new_empty(rows, n + columns, dtype=torch.bfloat16 if inverse else torch.float32)
    tile = _tile(rows, n, left, right)
    wrap_triton(kernels.rotate)[(_programs(rows, tile),)](
        x,
        out,
        x if mask is None else mask,
        x if signs is None else signs,
        left,
        right,
        x if tail is None else tail,
        rows,
        x.stride(0),
        x.stride(1),
        0 if tail is None else tail.stride(0),
        N=n,
        TAIL=columns,
        POOL=_power(tile["GROUP"]),
        INVERSE=inverse,
        SIGNED=signs is not None,
        MASKED=mask is not None,
        **tile,
    )
    return out


@triton_op("robuq_bench::split_gradient", mutates_args=())
def split_gradient(joint: Tensor, mask: Tensor | None, n: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 gradients (weight [m, n], up [m, rank], bias [m]) out of `joint` bfloat16 [m, n + extra]."""
    from robuq_bench.quant import fused_kernels as kernels

    rows = len(joint)
    weight = joint.new_empty(rows, n, dtype=torch.float32)
    up = joint.new_empty(rows, rank, dtype=torch.float32)
    bias = joint.new_empty(rows, dtype=torch.float32)
    wrap_triton(kernels.split_gradient)[(rows,)](
        joint,
        joint if mask is None else mask,
        weight,
        up if rank else weight,
        bias,
        N=n,
        BLOCK=_power(n),
        RANK=rank,
        EXTRA=joint.shape[1] - n,
        MASKED=mask is not None,
        num_warps=4 if n <= 2048 else 8,
    )
    return weight, up, bias


class _Linear(torch.autograd.Function):
    """y bfloat16 [rows, m] of x bfloat16 [rows, n]; float32 weight [m, n], bias [m], up [m, rank], down [rank, n]."""

    @staticmethod
    def forward(ctx, x, weight, bias, up, down, signs, left, right, numbers, weights: Rule, inputs: Rule):
        (rows, n), m = x.shape, len(weight)
        rank = 0 if up is None else up.shape[1]
        extra = max(16, _power(rank + 1))
        given = weight.abs().mean() if weights[0] == GIVEN else weight
        joint, weight_mask = quantise_rows(weight, given, up, bias, rank, extra, False, numbers[0], *weights)
        thin = rotate(down, None, signs, left, right, n, True) if rank else None
        if len(right):
            branch = x @ thin.T if rank else None
            hat, mask = rotate_quantise(x, branch, signs, left, right, rank, extra, numbers[1], *inputs)
        else:
            hat, mask = quantise_rows(x, x, None, None, 0, extra, True, numbers[1], *inputs)
        ctx.save_for_backward(x if rank else None, hat, joint, weight_mask, mask, thin, down)
        ctx.rotation = (signs, left, right)
        ctx.sizes = (rows, n, m, rank)
        ctx.flags = (weights[1] > 0, inputs[1] > 0, bias is not None)
        return hat @ joint.T

    @staticmethod
    def backward(ctx, gradient):
        x, hat, joint, weight_mask, mask, thin, down = ctx.saved_tensors
        rotation = ctx.rotation
        rows, n, m, rank = ctx.sizes
        weights_masked, inputs_masked, biased = ctx.flags
        gradient = gradient.contiguous()
        weight, up = joint[:, :n], joint[:, n : n + rank]
        mask = mask if inputs_masked else None
        weight_gradient, up_gradient, bias_gradient = split_gradient(
            gradient.T @ hat, weight_mask if weights_masked else None, n, rank
        )
        branch = None
        if len(rotation[2]) and mask is None and rows >= m:
            # Rotating the weights back costs what rotating as many tokens would; `up` comes along for the branch.
            whole = torch.addmm(weight, up, down.to(torch.bfloat16)) if rank else joint
            tail = joint[:, n : n + max(16, _power(rank))] if rank else None
            inward = gradient @ rotate(whole, None, *rotation, n, True, tail)
            inward, branch = inward[:, :n], inward[:, n : n + rank]
        elif len(rotation[2]):
            inward = rotate(gradient @ weight, mask, *rotation, n, True)
            if rank:
                branch = gradient @ up
                inward = torch.addmm(inward, branch, thin)
        else:
            inward = gradient @ weight if mask is None else gradient @ weight * mask
        return (
            inward,
            weight_gradient,
            bias_gradient if biased else None,
            up_gradient if rank else None,
            rotate(branch.T @ x, None, *rotation, n, False) if rank else None,
            *[None] * 6,
        )


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    """The forward pass of a QuantLinear whose parts are covered."""
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
    output = _Linear.apply(
        rows,
        layer.weight,
        layer.bias,
        layer.up,
        layer.down,
        layer.signs,
        layer.fused_left,
        layer.fused_right,
        layer.fused_numbers,
        *layer.fused_rules,
    )
    return output.view(*x.shape[:-1], -1)
