"""Triton kernels of a transformer block's row-wise parts (robuq_bench.models.fused calls them on a CUDA device).

Tokens are bfloat16 [images, T, N]; shift, scale and gate are rows of `modulation`, one for each image, STRIDE apart. A
program owns SPAN tokens of one image and walks through them one by one; sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def _normal(h, inside, N: tl.constexpr, EPS: tl.constexpr):
    """(h - mean) / deviation of a token, and 1 / deviation."""
    centred = tl.where(inside, h - tl.sum(h, 0) / N, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 0) / N + EPS)
    return centred * inverse, inverse


@triton.jit
def forward(
    x,
    branch,
    gate,
    shift,
    scale,
    hidden,
    out,
    T,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    EPS: tl.constexpr,
    ADDS: tl.constexpr,
    NORMS: tl.constexpr,
):
    """hidden = x + gate branch (ADDS), out = normalised hidden (1 + scale) + shift (NORMS)."""
    image = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < N
    if ADDS:
        g = tl.load(gate + image * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        a = tl.load(scale + image * STRIDE + column, mask=inside, other=0.0).to(tl.float32) + 1
        b = tl.load(shift + image * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    for index in range(SPAN):
        token = tl.program_id(1) * SPAN + index
        valid = (token < T) & inside
        place = (image * T + token) * N + column
        h = tl.load(x + place, mask=valid, other=0.0).to(tl.float32)
        if ADDS:
            h += g * tl.load(branch + place, mask=valid, other=0.0).to(tl.float32)
            h = h.to(tl.bfloat16)
            tl.store(hidden + place, h, mask=valid)
            h = h.to(tl.float32)
        if NORMS:
            normal, _ = _normal(h, inside, N, EPS)
            tl.store(out + place, (normal * a + b).to(tl.bfloat16), mask=valid)


@triton.jit
def backward(
    hidden,
    branch,
    gate,
    scale,
    from_hidden,
    from_out,
    to_x,
    to_branch,
    sums,
    T,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    OUTER: tl.constexpr,
    SPAN: tl.constexpr,
    EPS: tl.constexpr,
    ADDS: tl.constexpr,
    NORMS: tl.constexpr,
):
    """Gradients of x and branch, and this program's sums for gate, shift and scale: `sums` [parts, 3, images, N].

    Tokens of `from_out` lie OUTER apart.
    """
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < N
    if ADDS:
        g = tl.load(gate + image * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        a = tl.load(scale + image * STRIDE + column, mask=inside, other=0.0).to(tl.float32) + 1
    gates = tl.zeros([BLOCK], tl.float32)
    shifts, scales = gates, gates
    for index in range(SPAN):
        token = part * SPAN + index
        valid = (token < T) & inside
        place = (image * T + token) * N + column
        total = tl.load(from_hidden + place, mask=valid, other=0.0).to(tl.float32)
        if NORMS:
            h = tl.load(hidden + place, mask=valid, other=0.0).to(tl.float32)
            normal, inverse = _normal(h, inside, N, EPS)
            outer = tl.load(from_out + (image * T + token) * OUTER + column, mask=valid, other=0.0).to(tl.float32)
            shifts += outer
            scales += outer * normal
            outer *= a
            mean, along = tl.sum(outer, 0) / N, tl.sum(outer * normal, 0) / N
            total += (outer - mean - normal * along) * inverse
        tl.store(to_x + place, total.to(tl.bfloat16), mask=valid)
        if ADDS:
            gates += total * tl.load(branch + place, mask=valid, other=0.0).to(tl.float32)
            tl.store(to_branch + place, (total * g).to(tl.bfloat16), mask=valid)
    images = tl.num_programs(0)
    sums += ((part * 3).to(tl.int64) * images + image) * N + column
    if ADDS:
        tl.store(sums, gates, mask=inside)
    if NORMS:
        tl.store(sums + images * N, shifts, mask=inside)
        tl.store(sums + 2 * images * N, scales, mask=inside)


@triton.jit
def _sigmoid(x):
    """Of twice the polynomial in GELU's tanh: (1 + tanh u) / 2; and the slope of u."""
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 1 / (1 + tl.exp(-2 * inner)), 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)


@triton.jit
def gelu(x, out, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < size, other=0.0).to(tl.float32)
    share, _ = _sigmoid(value)
    tl.store(out + place, (value * share).to(tl.bfloat16), mask=place < size)


@triton.jit
def gelu_backward(x, gradient, out, size, N: tl.constexpr, OUTER: tl.constexpr, BLOCK: tl.constexpr):
    """Of x [., N]; rows of `gradient` lie OUTER apart."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < size, other=0.0).to(tl.float32)
    outer = tl.load(gradient + place // N * OUTER + place % N, mask=place < size, other=0.0).to(tl.float32)
    share, slope = _sigmoid(value)
    change = share + 2 * value * slope * share * (1 - share)
    tl.store(out + place, (outer * change).to(tl.bfloat16), mask=place < size)
