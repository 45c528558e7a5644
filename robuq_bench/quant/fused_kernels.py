"""Triton kernels of the fused quantised linear; imported on a CUDA device only (robuq_bench.quant.fused calls them).

A token of n = LEFT * RIGHT values is a matrix X [LEFT, RIGHT] in memory order, and x (A (x) B) is A^T X B. A tile is
SIDE rows of RIGHT values: as many whole tokens as fit, GROUP = SIDE // LEFT, one below the other. The left factor is
then the block diagonal of GROUP copies of A, so both products are SIDE wide and nothing is transposed. Factors are
+-1, exact in bfloat16; sums are float32.
"""

import triton
import triton.language as tl

MEAN, RMS, MAX, RANGE, CONDITIONAL, GIVEN = (tl.constexpr(rule) for rule in range(6))
STE, TRUST, CLIPPED = (tl.constexpr(estimator) for estimator in range(3))
TINY = tl.constexpr(1e-12)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small float32 to the nearest even integer


@triton.jit
def _sum(x, token, POOL: tl.constexpr):
    """Sum over each row of x, and with POOL > 0 over all rows of its token; float32 [rows]."""
    total = tl.sum(x, 1)
    if POOL > 0:
        own = token[:, None] == tl.arange(0, POOL)[None, :]
        each = tl.sum(tl.where(own, total[:, None], 0.0), 0)
        total = tl.sum(tl.where(own, each[None, :], 0.0), 1)
    return total


@triton.jit
def _max(x, token, POOL: tl.constexpr):
    """As `_sum`, the largest value."""
    largest = tl.max(x, 1)
    if POOL > 0:
        own = token[:, None] == tl.arange(0, POOL)[None, :]
        each = tl.max(tl.where(own, largest[:, None], float("-inf")), 0)
        largest = tl.max(tl.where(own, each[None, :], float("-inf")), 1)
    return largest


@triton.jit
def _fake_quantise(
    y,
    valid,
    token,
    count,
    given,
    numbers,
    POOL: tl.constexpr,
    RULE: tl.constexpr,
    ESTIMATOR: tl.constexpr,
):
    """(value, mask) of y, float32, scaled by `count` values; `numbers`: factor, low, high, shift of the grid."""
    factor, low, high, shift = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    size = tl.abs(y)
    offset = tl.zeros_like(tl.sum(y, 1))
    if RULE == RMS:
        stat = tl.sqrt(_sum(y * y, token, POOL) / count)
    elif RULE == MAX:
        stat = _max(size, token, POOL)
    elif RULE == RANGE:
        offset = -_max(tl.where(valid, -y, float("-inf")), token, POOL)
        stat = _max(tl.where(valid, y, float("-inf")), token, POOL) - offset
    elif RULE == GIVEN:
        stat = offset + tl.load(given)
    else:
        stat = _sum(size, token, POOL) / count
    cell = stat * factor
    step = cell
    if RULE == CONDITIONAL:
        kept = (size >= cell[:, None] / 2) & valid
        total = _sum(tl.where(kept, size, 0.0), token, POOL)
        step = total / tl.maximum(_sum(tl.where(kept, 1.0, 0.0), token, POOL), 1.0)
    # Few operations an element: rounding binds these kernels. A cell's lower edge belongs to it up to float rounding.
    inverse = 1 / tl.maximum(cell, TINY)
    z = y * inverse[:, None] - (offset * inverse + shift)[:, None]
    codes = (tl.minimum(tl.maximum(z, low), high) + ROUNDER) - ROUNDER
    value = codes * step[:, None] + (shift * step + offset)[:, None]
    mask = valid
    if ESTIMATOR == TRUST:
        mask = tl.abs(y - value) <= step[:, None] / 2 + 1e-6 * (step[:, None] + size)
    elif ESTIMATOR == CLIPPED:
        mask = (z >= low - 0.5) & (z <= high + 0.5)
    return value, mask


@triton.jit
def quantise_rows(
    x,
    out,
    mask,
    given,
    up,
    bias,
    x_stride,
    out_stride,
    up_row,
    up_column,
    numbers,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXTRA: tl.constexpr,
    BIAS: tl.constexpr,
    ONE: tl.constexpr,
    RULE: tl.constexpr,
    ESTIMATOR: tl.constexpr,
):
    """One row [N] -> fake-quantised, then EXTRA columns: the row of `up` [., RANK], its bias (ONE: 1), zeros."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    valid = column < N
    y = tl.load(x + row * x_stride + column, mask=valid, other=0.0).to(tl.float32)
    value, trusted = _fake_quantise(y, valid, row, N, given, numbers, 0, RULE, ESTIMATOR)
    tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), mask=valid)
    if ESTIMATOR != STE:
        tl.store(mask + row * N + column, trusted.to(tl.int8), mask=valid)
    extra = tl.arange(0, EXTRA)
    last = tl.zeros([EXTRA], tl.float32)
    if RANK > 0:
        last += tl.load(up + row * up_row + extra * up_column, mask=extra < RANK, other=0.0).to(tl.float32)
    if BIAS:
        last = tl.where(extra == RANK, tl.load(bias + row).to(tl.float32), last)
    if ONE:
        last = tl.where(extra == RANK, 1.0, last)
    tl.store(out + row * out_stride + N + extra, last.to(out.dtype.element_ty))


@triton.jit
def _factor(matrix, SIZE: tl.constexpr, TURNED: tl.constexpr):
    """A matrix [SIZE, SIZE], transposed when TURNED."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return tl.load(matrix + (j * SIZE + i if TURNED else i * SIZE + j))


@triton.jit
def _mix(x, left, right, MIX_LEFT: tl.constexpr):
    """left x right of x [SIDE, RIGHT] bfloat16; float32."""
    if MIX_LEFT:
        x = tl.dot(left, x).to(tl.bfloat16)
    return tl.dot(x, right)


@triton.jit
def rotate_quantise(
    x,
    branch,
    out,
    mask,
    signs,
    left,
    right,
    rows,
    numbers,
    N: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    POOL: tl.constexpr,
    RANK: tl.constexpr,
    EXTRA: tl.constexpr,
    SCALE: tl.constexpr,
    MIX_LEFT: tl.constexpr,
    SIGNED: tl.constexpr,
    RULE: tl.constexpr,
    ESTIMATOR: tl.constexpr,
):
    """[x_hat | branch | 1 | 0] of x [rows, N], branch [rows, RANK] bfloat16: x_hat = Q((x * signs) H)."""
    STRIDE: tl.constexpr = N + EXTRA
    i = tl.arange(0, SIDE)
    token = i // LEFT
    column = (i % LEFT)[:, None] * RIGHT + tl.arange(0, RIGHT)[None, :]
    place = i[:, None] * RIGHT + tl.arange(0, RIGHT)[None, :]
    if SIGNED:
        sign = tl.load(signs + column).to(tl.bfloat16)
    b = _factor(right, RIGHT, False)
    a = b
    if MIX_LEFT:
        a = _factor(left, SIDE, True)
    for tile in range(TILES):
        first = (tl.program_id(0) * TILES + tile) * GROUP
        own = first.to(tl.int64)  # 64 bits for the tile, 32 for places in it
        inside = ((token < GROUP) & (first + token < rows))[:, None]
        value = tl.load(x + own * N + place, mask=inside, other=0.0)
        if SIGNED:
            value *= sign
        y = _mix(value, a, b, MIX_LEFT) * SCALE
        value, trusted = _fake_quantise(y, inside, token, N, x, numbers, POOL, RULE, ESTIMATOR)
        tl.store(out + own * STRIDE + (token * EXTRA)[:, None] + place, value.to(tl.bfloat16), mask=inside)
        if ESTIMATOR != STE:
            tl.store(mask + own * N + place, trusted.to(tl.int8), mask=inside)
        row = tl.arange(0, POOL)[:, None]
        extra = tl.arange(0, EXTRA)[None, :]
        inside = (row < GROUP) & (first + row < rows)
        last = tl.where(extra == RANK, 1.0, 0.0) + tl.zeros([POOL, EXTRA], tl.float32)
        if RANK > 0:
            last += tl.load(branch + own * RANK + row * RANK + extra, mask=inside & (extra < RANK), other=0.0).to(
                tl.float32
            )
        tl.store(out + own * STRIDE + row * STRIDE + N + extra, last.to(tl.bfloat16), mask=inside)


@triton.jit
def rotate(
    x,
    out,
    mask,
    signs,
    left,
    right,
    tail,
    rows,
    x_row,
    x_column,
    tail_row,
    N: tl.constexpr,
    TAIL: tl.constexpr,
    POOL: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILES: tl.constexpr,
    SCALE: tl.constexpr,
    MIX_LEFT: tl.constexpr,
    INVERSE: tl.constexpr,
    SIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """(x * signs) H, or ((x * mask) H^T) * signs when INVERSE, of x [rows, N]; then TAIL columns of `tail`."""
    i = tl.arange(0, SIDE)
    token = i // LEFT
    column = (i % LEFT)[:, None] * RIGHT + tl.arange(0, RIGHT)[None, :]
    if SIGNED:
        sign = tl.load(signs + column).to(tl.float32)
    b = _factor(right, RIGHT, INVERSE)
    a = b
    if MIX_LEFT:
        a = _factor(left, SIDE, not INVERSE)
    for tile in range(TILES):
        first = (tl.program_id(0) * TILES + tile) * GROUP
        own = first.to(tl.int64)
        inside = ((token < GROUP) & (first + token < rows))[:, None]
        place = (token * x_row)[:, None] + column * x_column
        value = tl.load(x + own * x_row + place, mask=inside, other=0.0).to(tl.float32)
        place = (token * N)[:, None] + column
        if MASKED:
            value *= tl.load(mask + own * N + place, mask=inside, other=0).to(tl.float32)
        if SIGNED and not INVERSE:
            value *= sign
        y = _mix(value.to(tl.bfloat16), a, b, MIX_LEFT) * SCALE
        if SIGNED and INVERSE:
            y *= sign
        place = (token * (N + TAIL))[:, None] + column
        tl.store(out + own * (N + TAIL) + place, y.to(out.dtype.element_ty), mask=inside)
        if TAIL > 0:
            row = tl.arange(0, POOL)[:, None]
            extra = tl.arange(0, TAIL)[None, :]
            inside = (row < GROUP) & (first + row < rows)
            last = tl.load(tail + own * tail_row + row * tail_row + extra, mask=inside, other=0.0)
            tl.store(out + own * (N + TAIL) + row * (N + TAIL) + N + extra, last, mask=inside)


@triton.jit
def split_gradient(
    joint,
    mask,
    weight,
    up,
    bias,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    EXTRA: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One row of `joint` [., N + EXTRA] bfloat16 -> float32 gradients of weight [N], up [RANK], bias [1]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    value = tl.load(joint + row * (N + EXTRA) + column, mask=column < N, other=0.0).to(tl.float32)
    if MASKED:
        value *= tl.load(mask + row * N + column, mask=column < N, other=0).to(tl.float32)
    tl.store(weight + row * N + column, value, mask=column < N)
    extra = tl.arange(0, EXTRA)
    last = tl.load(joint + row * (N + EXTRA) + N + extra).to(tl.float32)
    if RANK > 0:
        tl.store(up + row * RANK + extra, last, mask=extra < RANK)
    tl.store(bias + row + extra * 0, last, mask=extra == RANK)
