"""Triton kernels of 8-bit attention (robuq_bench.quant.fused_attention calls them on a CUDA device).

Operands are one tensor [images, T, 3, heads, channels]. Codes are integers in bfloat16 (exact up to 256, and ready for
tensor cores) [3, heads of all images, T, WIDTH] of queries, keys, values; WIDTH = FIRST + SECOND columns hold the
channels, the others are zero. Steps are float32 [2, heads, T] of queries and keys, [heads, WIDTH] of values.

A program owns ROWS queries (or keys) of one head. Of up to CHUNK keys it sees all at once and computes scores a single
time; of more it walks through them twice, because a row's probabilities are known only after its sum. Exponentials are
to base 2. All sizes are constants: alignment of loads and stores follows from them.
"""

import triton
import triton.language as tl

TINY = tl.constexpr(1e-12)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small float32 to the nearest even integer
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rounded(x):
    return (x + ROUNDER) - ROUNDER


@triton.jit
def _load(x, row, start: tl.constexpr, LIMIT: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    """Columns start ... start + WIDTH of rows of `x` [T, STRIDE]; zero beyond LIMIT."""
    column = start + tl.arange(0, WIDTH)[None, :]
    return tl.load(x + row[:, None] * STRIDE + column, mask=column < LIMIT, other=0.0)


@triton.jit
def _store(out, value, row, start: tl.constexpr, LIMIT: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    column = start + tl.arange(0, WIDTH)[None, :]
    tl.store(out + row[:, None] * STRIDE + column, value.to(tl.bfloat16), mask=column < LIMIT)


@triton.jit
def _pair(x, row, LIMIT: tl.constexpr, STRIDE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The columns of `x` in two parts; with SECOND = 0 the second is the first again, and not used."""
    first = _load(x, row, 0, LIMIT, STRIDE, FIRST)
    second = first
    if SECOND > 0:
        second = _load(x, row, FIRST, LIMIT, STRIDE, SECOND)
    return first, second


@triton.jit
def _product(a1, a2, b1, b2, SECOND: tl.constexpr):
    """a b^T, both in two parts."""
    out = tl.dot(a1, tl.trans(b1))
    if SECOND > 0:
        out = tl.dot(a2, tl.trans(b2), out)
    return out


@triton.jit
def _scaled(part1, part2, steps, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Both parts times the steps of their columns, in bfloat16."""
    part1 = (part1 * tl.load(steps + tl.arange(0, FIRST))[None, :]).to(tl.bfloat16)
    if SECOND > 0:
        part2 = (part2 * tl.load(steps + FIRST + tl.arange(0, SECOND))[None, :]).to(tl.bfloat16)
    return part1, part2


@triton.jit
def encode(
    qkv,
    codes,
    token_steps,
    channel_steps,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Codes and steps of one head's queries, keys (absmax / 127 of each token) or values (of each channel)."""
    head, part, count = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    STRIDE: tl.constexpr = 3 * HEADS * CHANNELS
    WIDTH: tl.constexpr = FIRST + SECOND
    x = qkv + (head // HEADS).to(tl.int64) * T * STRIDE + part * HEADS * CHANNELS + (head % HEADS) * CHANNELS
    codes += (part * count + head).to(tl.int64) * T * WIDTH
    one = tl.zeros([FIRST], tl.float32)
    two = tl.zeros([SECOND if SECOND > 0 else FIRST], tl.float32)
    if part == 2:
        for first in range(0, T, ROWS):
            x1, x2 = _pair(x, first + tl.arange(0, ROWS), CHANNELS, STRIDE, FIRST, SECOND)
            one = tl.maximum(one, tl.max(tl.abs(x1.to(tl.float32)), 0))
            two = tl.maximum(two, tl.max(tl.abs(x2.to(tl.float32)), 0))
        one, two = one / 127, two / 127
        tl.store(channel_steps + head * WIDTH + tl.arange(0, FIRST), one)
        if SECOND > 0:
            tl.store(channel_steps + head * WIDTH + FIRST + tl.arange(0, SECOND), two)
    for first in range(0, T, ROWS):
        row = first + tl.arange(0, ROWS)
        x1, x2 = _pair(x, row, CHANNELS, STRIDE, FIRST, SECOND)
        x1, x2 = x1.to(tl.float32), x2.to(tl.float32)
        step = tl.maximum(tl.max(tl.abs(x1), 1), tl.max(tl.abs(x2), 1)) / 127
        if part < 2:
            tl.store(token_steps + (part * count + head) * T + row, step)
        shared = tl.where(part < 2, step, 0.0)[:, None]  # a token's step, or a channel's
        x1 = _rounded(x1 / tl.maximum(shared + one[None, :], TINY))
        _store(codes, x1, row, 0, WIDTH, WIDTH, FIRST)
        if SECOND > 0:
            x2 = _rounded(x2 / tl.maximum(shared + two[None, :], TINY))
            _store(codes, x2, row, FIRST, WIDTH, WIDTH, SECOND)


@triton.jit
def forward(
    codes,
    token_steps,
    channel_steps,
    out,
    logs,
    SCALE: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Output of ROWS queries, and the base-2 logarithms of their sums for the backward pass."""
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    q = codes + head.to(tl.int64) * T * WIDTH
    k, v = q + count.to(tl.int64) * T * WIDTH, q + 2 * count.to(tl.int64) * T * WIDTH
    k_step = token_steps + (count + head) * T
    q1, q2 = _pair(q, row, WIDTH, WIDTH, FIRST, SECOND)
    step = tl.load(token_steps + head * T + row) * (SCALE * LOG2E)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    scores = tl.zeros([ROWS, CHUNK], tl.float32)
    for start in range(0, T, CHUNK):
        key = start + tl.arange(0, CHUNK)
        k1, k2 = _pair(k, key, WIDTH, WIDTH, FIRST, SECOND)
        other = tl.load(k_step + key)
        scores = _product(q1, q2, k1, k2, SECOND) * step[:, None] * other[None, :]
        higher = tl.maximum(largest, tl.max(scores, 1))
        total = total * tl.exp2(largest - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
        largest = higher
    log = largest + tl.log2(total)
    tl.store(logs + head * T + row, log)
    mixed1 = tl.zeros([ROWS, FIRST], tl.float32)
    mixed2 = tl.zeros([ROWS, SECOND if SECOND > 0 else FIRST], tl.float32)
    for start in range(0, T, CHUNK):
        key = start + tl.arange(0, CHUNK)
        if T > CHUNK:
            k1, k2 = _pair(k, key, WIDTH, WIDTH, FIRST, SECOND)
            other = tl.load(k_step + key)
            scores = _product(q1, q2, k1, k2, SECOND) * step[:, None] * other[None, :]
        rounded = _rounded(tl.exp2(scores - log[:, None]) * 255).to(tl.bfloat16)
        v1, v2 = _pair(v, key, WIDTH, WIDTH, FIRST, SECOND)
        mixed1 = tl.dot(rounded, v1, mixed1)
        if SECOND > 0:
            mixed2 = tl.dot(rounded, v2, mixed2)
    STRIDE: tl.constexpr = HEADS * CHANNELS
    out += (head // HEADS).to(tl.int64) * T * STRIDE + (head % HEADS) * CHANNELS
    step = tl.load(channel_steps + head * WIDTH + tl.arange(0, FIRST))[None, :]
    _store(out, mixed1 * (step / 255), row, 0, CHANNELS, STRIDE, FIRST)
    if SECOND > 0:
        step = tl.load(channel_steps + head * WIDTH + FIRST + tl.arange(0, SECOND))[None, :]
        _store(out, mixed2 * (step / 255), row, FIRST, CHANNELS, STRIDE, SECOND)


@triton.jit
def backward_queries(
    codes,
    token_steps,
    channel_steps,
    gradient,
    logs,
    means,
    out,
    SCALE: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    OUTER: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Gradients of ROWS queries, and sum_k P dP of each for `backward_keys`."""
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    q = codes + head.to(tl.int64) * T * WIDTH
    k, v = q + count.to(tl.int64) * T * WIDTH, q + 2 * count.to(tl.int64) * T * WIDTH
    k_step = token_steps + (count + head) * T
    STRIDE: tl.constexpr = HEADS * CHANNELS
    image = (head // HEADS).to(tl.int64) * T
    gradient += image * OUTER + (head % HEADS) * CHANNELS
    out += image * 3 * STRIDE + (head % HEADS) * CHANNELS
    q1, q2 = _pair(q, row, WIDTH, WIDTH, FIRST, SECOND)
    outer1, outer2 = _pair(gradient, row, CHANNELS, OUTER, FIRST, SECOND)
    # The channels' steps belong to V: multiplied to dO they serve all keys.
    outer1, outer2 = _scaled(outer1, outer2, channel_steps + head * WIDTH, FIRST, SECOND)
    step = tl.load(token_steps + head * T + row) * (SCALE * LOG2E)
    log = tl.load(logs + head * T + row)
    mean = tl.zeros([ROWS], tl.float32)
    share, inner = tl.zeros([ROWS, CHUNK], tl.float32), tl.zeros([ROWS, CHUNK], tl.float32)
    k1, k2 = _pair(k, tl.arange(0, CHUNK), WIDTH, WIDTH, FIRST, SECOND)
    other = tl.zeros([CHUNK], tl.float32)
    for start in range(0, T, CHUNK):
        key = start + tl.arange(0, CHUNK)
        k1, k2 = _pair(k, key, WIDTH, WIDTH, FIRST, SECOND)
        v1, v2 = _pair(v, key, WIDTH, WIDTH, FIRST, SECOND)
        other = tl.load(k_step + key)
        share = tl.exp2(_product(q1, q2, k1, k2, SECOND) * step[:, None] * other[None, :] - log[:, None])
        inner = _product(outer1, outer2, v1, v2, SECOND)
        mean += tl.sum(share * inner, 1)
    tl.store(means + head * T + row, mean)
    total1 = tl.zeros([ROWS, FIRST], tl.float32)
    total2 = tl.zeros([ROWS, SECOND if SECOND > 0 else FIRST], tl.float32)
    for start in range(0, T, CHUNK):
        if T > CHUNK:
            key = start + tl.arange(0, CHUNK)
            k1, k2 = _pair(k, key, WIDTH, WIDTH, FIRST, SECOND)
            v1, v2 = _pair(v, key, WIDTH, WIDTH, FIRST, SECOND)
            other = tl.load(k_step + key)
            share = tl.exp2(_product(q1, q2, k1, k2, SECOND) * step[:, None] * other[None, :] - log[:, None])
            inner = _product(outer1, outer2, v1, v2, SECOND)
        change = (share * (inner - mean[:, None]) * (other * SCALE)[None, :]).to(tl.bfloat16)
        total1 = tl.dot(change, k1, total1)
        if SECOND > 0:
            total2 = tl.dot(change, k2, total2)
    _store(out, total1, row, 0, CHANNELS, 3 * STRIDE, FIRST)
    if SECOND > 0:
        _store(out, total2, row, FIRST, CHANNELS, 3 * STRIDE, SECOND)


@triton.jit
def backward_keys(
    codes,
    token_steps,
    channel_steps,
    gradient,
    logs,
    means,
    out,
    SCALE: tl.constexpr,
    T: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    OUTER: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Gradients of ROWS keys and values, CHUNK queries at a time, after `backward_queries`; rows are keys here."""
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    q = codes + head.to(tl.int64) * T * WIDTH
    k, v = q + count.to(tl.int64) * T * WIDTH, q + 2 * count.to(tl.int64) * T * WIDTH
    q_step = token_steps + head * T
    STRIDE: tl.constexpr = HEADS * CHANNELS
    image = (head // HEADS).to(tl.int64) * T
    gradient += image * OUTER + (head % HEADS) * CHANNELS
    out += image * 3 * STRIDE + (head % HEADS) * CHANNELS
    k1, k2 = _pair(k, row, WIDTH, WIDTH, FIRST, SECOND)
    v1, v2 = _pair(v, row, WIDTH, WIDTH, FIRST, SECOND)
    v1, v2 = _scaled(v1, v2, channel_steps + head * WIDTH, FIRST, SECOND)
    keys1, values1 = tl.zeros([ROWS, FIRST], tl.float32), tl.zeros([ROWS, FIRST], tl.float32)
    keys2 = tl.zeros([ROWS, SECOND if SECOND > 0 else FIRST], tl.float32)
    values2 = keys2
    step = tl.load(q_step + count * T + row) * (SCALE * LOG2E)
    for start in range(0, T, CHUNK):
        query = start + tl.arange(0, CHUNK)
        q1, q2 = _pair(q, query, WIDTH, WIDTH, FIRST, SECOND)
        outer1, outer2 = _pair(gradient, query, CHANNELS, OUTER, FIRST, SECOND)
        log = tl.load(logs + head * T + query)
        mean = tl.load(means + head * T + query)
        other = tl.load(q_step + query)
        share = tl.exp2(_product(k1, k2, q1, q2, SECOND) * step[:, None] * other[None, :] - log[None, :])
        inner = _product(v1, v2, outer1, outer2, SECOND)
        rounded = _rounded(share * 255).to(tl.bfloat16)
        change = (share * (inner - mean[None, :]) * (other * SCALE)[None, :]).to(tl.bfloat16)
        values1 = tl.dot(rounded, outer1, values1)
        keys1 = tl.dot(change, q1, keys1)
        if SECOND > 0:
            values2 = tl.dot(rounded, outer2, values2)
            keys2 = tl.dot(change, q2, keys2)
    _store(out + STRIDE, keys1, row, 0, CHANNELS, 3 * STRIDE, FIRST)
    _store(out + 2 * STRIDE, values1 / 255, row, 0, CHANNELS, 3 * STRIDE, FIRST)
    if SECOND > 0:
        _store(out + STRIDE, keys2, row, FIRST, CHANNELS, 3 * STRIDE, SECOND)
        _store(out + 2 * STRIDE, values2 / 255, row, FIRST, CHANNELS, 3 * STRIDE, SECOND)
