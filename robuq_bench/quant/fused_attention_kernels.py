"""Triton kernels of 8-bit attention (robuq_bench.quant.fused_attention calls them on a CUDA device).

Codes are integers in bfloat16 (exact up to 256, and ready for tensor cores) [3, heads of all images, T, WIDTH] of
queries, keys, values; WIDTH = FIRST + SECOND columns hold the channels, the others are zero. Steps are float32
[2, heads, T] of queries and keys, [heads, WIDTH] of values. A program owns ROWS queries (or keys) of one head and
walks through all keys (queries), CHUNK at a time.
"""

import triton
import triton.language as tl

TINY = tl.constexpr(1e-12)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a small float32 to the nearest even integer


@triton.jit
def _rounded(x):
    return (x + ROUNDER) - ROUNDER


@triton.jit
def _load(x, row, start, tokens, channels, stride, WIDTH: tl.constexpr):
    column = start + tl.arange(0, WIDTH)[None, :]
    return tl.load(x + row[:, None] * stride + column, mask=(row[:, None] < tokens) & (column < channels), other=0.0)


@triton.jit
def _store(out, value, row, start, tokens, channels, stride, WIDTH: tl.constexpr):
    column = start + tl.arange(0, WIDTH)[None, :]
    inside = (row[:, None] < tokens) & (column < channels)
    tl.store(out + row[:, None] * stride + column, value.to(tl.bfloat16), mask=inside)


@triton.jit
def _codes(x, row, start, tokens, STRIDE: tl.constexpr, WIDTH: tl.constexpr):
    place = row[:, None] * STRIDE + start + tl.arange(0, WIDTH)[None, :]
    return tl.load(x + place, mask=row[:, None] < tokens, other=0.0)


@triton.jit
def encode_tokens(
    query,
    key,
    codes,
    token_steps,
    tokens,
    channels,
    heads,
    image_stride,
    head_stride,
    token_stride,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Codes and steps, absmax / 127 of each token, of ROWS queries or keys of one head."""
    head, part = tl.program_id(0), tl.program_id(2)
    count = tl.num_programs(0)
    x = key if part == 1 else query
    x += (head // heads).to(tl.int64) * image_stride + (head % heads) * head_stride
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    codes += (part * count + head).to(tl.int64) * tokens * WIDTH
    first = _load(x, row, 0, tokens, channels, token_stride, FIRST).to(tl.float32)
    largest = tl.max(tl.abs(first), 1)
    if SECOND > 0:
        second = _load(x, row, FIRST, tokens, channels, token_stride, SECOND).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(second), 1))
    step = largest / 127
    tl.store(token_steps + (part * count + head) * tokens + row, step, mask=row < tokens)
    cell = tl.maximum(step, TINY)[:, None]
    _store(codes, _rounded(first / cell), row, 0, tokens, WIDTH, WIDTH, FIRST)
    if SECOND > 0:
        _store(codes, _rounded(second / cell), row, FIRST, tokens, WIDTH, WIDTH, SECOND)


@triton.jit
def encode_channels(
    value,
    codes,
    channel_steps,
    tokens,
    channels,
    heads,
    image_stride,
    head_stride,
    token_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Codes and steps, absmax / 127 over the tokens, of COLUMNS channels of one head's values."""
    head, count = tl.program_id(0), tl.num_programs(0)
    start = tl.program_id(1) * COLUMNS
    value += (head // heads).to(tl.int64) * image_stride + (head % heads) * head_stride
    codes += (2 * count + head).to(tl.int64) * tokens * WIDTH
    largest = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)
        x = _load(value, row, start, tokens, channels, token_stride, COLUMNS).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 0))
    step = largest / 127
    tl.store(channel_steps + head * WIDTH + start + tl.arange(0, COLUMNS), step)
    for first in range(0, tokens, ROWS):
        row = first + tl.arange(0, ROWS)
        x = _load(value, row, start, tokens, channels, token_stride, COLUMNS).to(tl.float32)
        x = _rounded(x / tl.maximum(step, TINY)[None, :])
        _store(codes, x, row, start, tokens, WIDTH, WIDTH, COLUMNS)


@triton.jit
def forward(
    codes,
    token_steps,
    channel_steps,
    out,
    soft,
    logs,
    tokens,
    channels,
    heads,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Output of ROWS queries; for the backward pass the same with unrounded probabilities, and their log-sums.

    Probabilities can only be rounded once the sum over all keys is known: scores are computed twice.
    """
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    size = tokens * WIDTH
    q = codes + head.to(tl.int64) * size
    k, v = q + count.to(tl.int64) * size, q + 2 * count.to(tl.int64) * size
    q_step = token_steps + head * tokens
    k_step = q_step + count * tokens
    q1 = _codes(q, row, 0, tokens, WIDTH, FIRST)
    if SECOND > 0:
        q2 = _codes(q, row, FIRST, tokens, WIDTH, SECOND)
    step = tl.load(q_step + row, mask=row < tokens, other=0.0) * SCALE
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, tokens, CHUNK):
        key = start + tl.arange(0, CHUNK)
        scores = tl.dot(q1, tl.trans(_codes(k, key, 0, tokens, WIDTH, FIRST)))
        if SECOND > 0:
            scores = tl.dot(q2, tl.trans(_codes(k, key, FIRST, tokens, WIDTH, SECOND)), scores)
        other = tl.load(k_step + key, mask=key < tokens, other=0.0)
        scores = tl.where(key[None, :] < tokens, scores * step[:, None] * other[None, :], float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        largest = higher
    log = largest + tl.log(total)
    tl.store(logs + head * tokens + row, log, mask=row < tokens)
    hard, smooth = tl.zeros([ROWS, FIRST], tl.float32), tl.zeros([ROWS, FIRST], tl.float32)
    if SECOND > 0:
        hard2, smooth2 = tl.zeros([ROWS, SECOND], tl.float32), tl.zeros([ROWS, SECOND], tl.float32)
    for start in range(0, tokens, CHUNK):
        key = start + tl.arange(0, CHUNK)
        scores = tl.dot(q1, tl.trans(_codes(k, key, 0, tokens, WIDTH, FIRST)))
        if SECOND > 0:
            scores = tl.dot(q2, tl.trans(_codes(k, key, FIRST, tokens, WIDTH, SECOND)), scores)
        other = tl.load(k_step + key, mask=key < tokens, other=0.0)
        share = tl.exp(scores * step[:, None] * other[None, :] - log[:, None])
        rounded, share = _rounded(share * 255).to(tl.bfloat16), share.to(tl.bfloat16)
        v1 = _codes(v, key, 0, tokens, WIDTH, FIRST)
        hard = tl.dot(rounded, v1, hard)
        smooth = tl.dot(share, v1, smooth)
        if SECOND > 0:
            v2 = _codes(v, key, FIRST, tokens, WIDTH, SECOND)
            hard2 = tl.dot(rounded, v2, hard2)
            smooth2 = tl.dot(share, v2, smooth2)
    stride = heads * channels
    image = (head // heads).to(tl.int64) * tokens * stride + (head % heads) * channels
    out += image
    soft += image
    step = tl.load(channel_steps + head * WIDTH + tl.arange(0, FIRST))[None, :]
    _store(out, hard * (step / 255), row, 0, tokens, channels, stride, FIRST)
    _store(soft, smooth * step, row, 0, tokens, channels, stride, FIRST)
    if SECOND > 0:
        step = tl.load(channel_steps + head * WIDTH + FIRST + tl.arange(0, SECOND))[None, :]
        _store(out, hard2 * (step / 255), row, FIRST, tokens, channels, stride, SECOND)
        _store(soft, smooth2 * step, row, FIRST, tokens, channels, stride, SECOND)


@triton.jit
def backward_queries(
    codes,
    token_steps,
    channel_steps,
    gradient,
    soft,
    logs,
    means,
    out,
    tokens,
    channels,
    heads,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Gradient of ROWS queries, CHUNK keys at a time; leaves sum_k p dp of each query in `means`."""
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    size = tokens * WIDTH
    q = codes + head.to(tl.int64) * size
    k, v = q + count.to(tl.int64) * size, q + 2 * count.to(tl.int64) * size
    q_step = token_steps + head * tokens
    k_step = q_step + count * tokens
    stride = heads * channels
    image = (head // heads).to(tl.int64) * tokens * stride + (head % heads) * channels
    gradient += image
    soft += image
    out += 2 * (head // heads).to(tl.int64) * tokens * stride + image
    outer = _load(gradient, row, 0, tokens, channels, stride, FIRST).to(tl.float32)
    mean = tl.sum(outer * _load(soft, row, 0, tokens, channels, stride, FIRST).to(tl.float32), 1)
    outer = (outer * tl.load(channel_steps + head * WIDTH + tl.arange(0, FIRST))[None, :]).to(tl.bfloat16)
    q1 = _codes(q, row, 0, tokens, WIDTH, FIRST)
    total = tl.zeros([ROWS, FIRST], tl.float32)
    if SECOND > 0:
        outer2 = _load(gradient, row, FIRST, tokens, channels, stride, SECOND).to(tl.float32)
        mean += tl.sum(outer2 * _load(soft, row, FIRST, tokens, channels, stride, SECOND).to(tl.float32), 1)
        step = tl.load(channel_steps + head * WIDTH + FIRST + tl.arange(0, SECOND))
        outer2 = (outer2 * step[None, :]).to(tl.bfloat16)
        q2 = _codes(q, row, FIRST, tokens, WIDTH, SECOND)
        total2 = tl.zeros([ROWS, SECOND], tl.float32)
    tl.store(means + head * tokens + row, mean, mask=row < tokens)
    log = tl.load(logs + head * tokens + row, mask=row < tokens, other=float("inf"))
    step = tl.load(q_step + row, mask=row < tokens, other=0.0) * SCALE
    for start in range(0, tokens, CHUNK):
        key = start + tl.arange(0, CHUNK)
        k1 = _codes(k, key, 0, tokens, WIDTH, FIRST)
        scores = tl.dot(q1, tl.trans(k1))
        inner = tl.dot(outer, tl.trans(_codes(v, key, 0, tokens, WIDTH, FIRST)))
        if SECOND > 0:
            k2 = _codes(k, key, FIRST, tokens, WIDTH, SECOND)
            scores = tl.dot(q2, tl.trans(k2), scores)
            inner = tl.dot(outer2, tl.trans(_codes(v, key, FIRST, tokens, WIDTH, SECOND)), inner)
        other = tl.load(k_step + key, mask=key < tokens, other=0.0)
        share = tl.exp(scores * step[:, None] * other[None, :] - log[:, None])
        change = (share * (inner - mean[:, None]) * (other * SCALE)[None, :]).to(tl.bfloat16)
        total = tl.dot(change, k1, total)
        if SECOND > 0:
            total2 = tl.dot(change, k2, total2)
    _store(out, total, row, 0, tokens, channels, 3 * stride, FIRST)
    if SECOND > 0:
        _store(out, total2, row, FIRST, tokens, channels, 3 * stride, SECOND)


@triton.jit
def backward_keys(
    codes,
    token_steps,
    channel_steps,
    gradient,
    logs,
    means,
    out,
    tokens,
    channels,
    heads,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Gradients of ROWS keys and values, CHUNK queries at a time, after `backward_queries`; rows are keys here."""
    head, count = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = FIRST + SECOND
    size = tokens * WIDTH
    q = codes + head.to(tl.int64) * size
    k, v = q + count.to(tl.int64) * size, q + 2 * count.to(tl.int64) * size
    q_step = token_steps + head * tokens
    k_step = q_step + count * tokens
    stride = heads * channels
    image = (head // heads).to(tl.int64) * tokens * stride + (head % heads) * channels
    gradient += image
    out += 2 * (head // heads).to(tl.int64) * tokens * stride + image
    k1 = _codes(k, row, 0, tokens, WIDTH, FIRST)
    step = tl.load(channel_steps + head * WIDTH + tl.arange(0, FIRST))
    v1 = (_codes(v, row, 0, tokens, WIDTH, FIRST) * step[None, :]).to(tl.bfloat16)
    keys, values = tl.zeros([ROWS, FIRST], tl.float32), tl.zeros([ROWS, FIRST], tl.float32)
    if SECOND > 0:
        k2 = _codes(k, row, FIRST, tokens, WIDTH, SECOND)
        step = tl.load(channel_steps + head * WIDTH + FIRST + tl.arange(0, SECOND))
        v2 = (_codes(v, row, FIRST, tokens, WIDTH, SECOND) * step[None, :]).to(tl.bfloat16)
        keys2, values2 = tl.zeros([ROWS, SECOND], tl.float32), tl.zeros([ROWS, SECOND], tl.float32)
    step = tl.load(k_step + row, mask=row < tokens, other=0.0) * SCALE
    for start in range(0, tokens, CHUNK):
        query = start + tl.arange(0, CHUNK)
        q1 = _codes(q, query, 0, tokens, WIDTH, FIRST)
        outer = _load(gradient, query, 0, tokens, channels, stride, FIRST)
        scores = tl.dot(k1, tl.trans(q1))
        inner = tl.dot(v1, tl.trans(outer))
        if SECOND > 0:
            q2 = _codes(q, query, FIRST, tokens, WIDTH, SECOND)
            outer2 = _load(gradient, query, FIRST, tokens, channels, stride, SECOND)
            scores = tl.dot(k2, tl.trans(q2), scores)
            inner = tl.dot(v2, tl.trans(outer2), inner)
        log = tl.load(logs + head * tokens + query, mask=query < tokens, other=float("inf"))  # padding: share 0
        mean = tl.load(means + head * tokens + query, mask=query < tokens, other=0.0)
        other = tl.load(q_step + query, mask=query < tokens, other=0.0)
        share = tl.exp(scores * step[:, None] * other[None, :] - log[None, :])
        rounded = _rounded(share * 255).to(tl.bfloat16)
        change = (share * (inner - mean[None, :]) * (other * SCALE)[None, :]).to(tl.bfloat16)
        values = tl.dot(rounded, outer, values)
        keys = tl.dot(change, q1, keys)
        if SECOND > 0:
            values2 = tl.dot(rounded, outer2, values2)
            keys2 = tl.dot(change, q2, keys2)
    _store(out + stride, keys, row, 0, tokens, channels, 3 * stride, FIRST)
    _store(out + 2 * stride, values / 255, row, 0, tokens, channels, 3 * stride, FIRST)
    if SECOND > 0:
        _store(out + stride, keys2, row, FIRST, tokens, channels, 3 * stride, SECOND)
        _store(out + 2 * stride, values2 / 255, row, FIRST, tokens, channels, 3 * stride, SECOND)
