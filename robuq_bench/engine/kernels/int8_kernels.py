"""The INT8 path's Triton kernels; imported by int8.py when they are first needed, as Triton may not be installed."""

import triton
import triton.language as tl

GELU = tl.constexpr(1)
GATE = tl.constexpr(2)


@triton.jit
def unpack(planes, codes, m, UNITS: tl.constexpr, BITS: tl.constexpr):
    """Bit planes [ceil(m / 64), BITS, UNITS, 64, 4] -> codes int8 [m, UNITS * 128], 16 tokens of a unit a program."""
    token = tl.program_id(0) * 16 + tl.arange(0, 16)[:, None]
    unit = tl.program_id(1)
    channel = tl.arange(0, 128)[None, :]
    code = tl.zeros((16, 128), tl.int32)
    for i in tl.static_range(BITS):
        row = ((token // 64 * BITS + i) * UNITS + unit) * 64 + token % 64
        word = tl.load(planes + row * 4 + channel // 32)
        code += (word >> (channel % 32) & 1) << i
    at = token.to(tl.int64) * (UNITS * 128) + unit * 128 + channel
    tl.store(codes + at, code.to(tl.int8), mask=token < m)


@triton.jit
def product(
    codes, weight, step, offset, alpha, weight_sum, bias, down, up, gate, residual, out,
    m, n, gate_rows, gate_stride, shift,
    K: tl.constexpr, EPILOGUE: tl.constexpr, OFFSET: tl.constexpr, RANK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of out [m, n]: codes int8 [m, K] times weight int8 [n, K], exact in int32, then the epilogue."""
    rows, columns = tl.cdiv(m, BM), tl.cdiv(n, BN)
    band = tl.program_id(0) // (8 * columns)  # bands of eight row tiles share their weights in L2
    height = tl.minimum(rows - band * 8, 8)
    inside = tl.program_id(0) % (8 * columns)
    i = (band * 8 + inside % height) * BM + tl.arange(0, BM)
    j = inside // height * BN + tl.arange(0, BN)
    row, column, k = i % m, j % n, tl.arange(0, BK)  # past the end: some other row, never stored
    a = codes + row.to(tl.int64)[:, None] * K + k[None, :]
    b = weight + column[:, None] * K + k[None, :]
    dot = tl.zeros((BM, BN), tl.int32)
    for _ in range(K // BK):
        dot = tl.dot(tl.load(a), tl.trans(tl.load(b)), dot, out_dtype=tl.int32)
        a += BK
        b += BK
    sums = tl.load(weight_sum + column)[None, :]
    y = tl.load(step + row)[:, None] * (dot.to(tl.float32) + shift * sums)
    if OFFSET:
        y += tl.load(offset + row)[:, None] * sums
    y = y * tl.load(alpha + column)[None, :] + tl.load(bias + column)[None, :]
    if RANK:
        r = tl.arange(0, 16)
        low = tl.load(down + row[:, None] * 16 + r[None, :])
        y = tl.dot(low, tl.trans(tl.load(up + column[:, None] * 16 + r[None, :])), y)
    at = i.to(tl.int64)[:, None] * n + j[None, :]
    mask = (i < m)[:, None] & (j < n)[None, :]
    if EPILOGUE == GELU:
        y = y * tl.sigmoid(y * (1.5957691216 + 0.0713548162726 * y * y))
    if EPILOGUE == GATE:
        image = row // gate_rows
        gates = tl.load(gate + image.to(tl.int64)[:, None] * gate_stride + column[None, :]).to(tl.float32)
        y = gates * y + tl.load(residual + at, mask=mask).to(tl.float32)
    tl.store(out + at, y.to(tl.bfloat16), mask=mask)
