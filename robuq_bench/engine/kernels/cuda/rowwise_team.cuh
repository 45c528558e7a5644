// Row-wise kernel for Hopper, R = 36, its parts: both products by wgmma straight from shared memory, no split of sums
// in halves.
//
// A team is one warpgroup (C = 32, four tokens at a time) or two (C = 128, two tokens). What a warp has of a token
// passes through its registers on the way in, where LayerNorm, modulation, GELU and signs are applied; it is rounded to
// 16 bits once. With Z = H_C X^T and Y^T = Z mix:
//   columns    H_C is operand A; X is operand B as it lies: 72 rows of two tokens, C = 128; of four, C = 32, where half
//              of A is zero and the upper 32 rows of sums are those of the odd tokens
//   rows       the sums are operand A of the next product as they lie, read as tf32 (11 bits); operand B is mix
// A thread then holds two columns c' = 2 g and 2 g + 1 of 36 sums; three exchanges between lanes make 16 columns of a
// row.
//
// More macros: C = 32 | 128, TEAMS (of a block), STEPS (of a team between barriers of the block).

constexpr int N = R * C, UNITS = N / 128;
constexpr int STEP = C == 32 ? 4 : 2;                      // tokens that a team does at a time
constexpr int TEAM_WARPS = C == 32 ? 4 : 8;
constexpr int PARTS = TEAM_WARPS * 2 / STEP;               // warps that share a token's sums
constexpr int WARPS = TEAM_WARPS * TEAMS, THREADS = 32 * WARPS;
constexpr int SLOTS = TEAMS * STEPS, BATCH = STEP * SLOTS; // tokens between barriers of the block
constexpr int PITCH = 16 * 2 * R + (C == 32 ? 32 : 16);    // of 8 channels of all rows; the gap spreads the banks
constexpr int ODD = C / 8 * PITCH + 16;                    // from an even token to the odd one beside it, C = 32
constexpr int SLOT = C == 32 ? 2 * ODD : 16 * PITCH;       // bytes of a step's tokens
constexpr int SIGNS = C == 32 ? 4 : 8;                     // tiles of +-1, 64 x 16 each
constexpr int MIX_ROWS = 40, MIX_TILE = 2 * MIX_ROWS * 16; // a tile of mix: 8 x 40 tf32
constexpr int PIECES = R / 4;                              // a thread prepares so many four channels of a token
constexpr int STRIDE = 128 / C * 16;                       // between them, in shared memory
constexpr int PLANE = N / 8;                               // bytes of a token's plane
constexpr int SIGNS_AT = 2 * SLOTS * SLOT, MIX_AT = SIGNS_AT + SIGNS * 2048, STAGE_AT = MIX_AT + 10 * MIX_TILE;
constexpr int TABLES_AT = STAGE_AT + BATCH * BITS * PLANE; // of each team: signed 1 + scale, shift
constexpr int OWN = N / 16 / WARPS;                        // a warp's steps of 16 channels of the down-projection
static_assert(R == 36 && (C == 32 || C == 128) && BATCH <= 8 && STEPS <= 2, "width");
static_assert(PRE != 1 || (C == 32 && STEPS == 1), "LayerNorm wants a whole token in a warp");

// A wgmma operand of blocks of 8 rows x 16 bytes: where it starts, how far its two blocks along K lie apart, and `plus`
// bytes further on.
__device__ __forceinline__ unsigned long long operand(unsigned at, unsigned along_k, unsigned plus) {
  return (unsigned long long)(at / 16 + plus / 16 + along_k / 16 * 65536) | 8ull << 32;
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Waits for all products, of which `d` are sums.
template <int COUNT>
__device__ __forceinline__ void end_products(float (&d)[COUNT]) {
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])

#if NORMAL
#define TOKEN_TYPES ".f16.f16"
#else
#define TOKEN_TYPES ".bf16.bf16"
#endif

// d [64, 72] = (add ? d : 0) + A B of tokens' type, [64, 16] and [72, 16].
__device__ __forceinline__ void columns_product(float (&d)[36], unsigned long long a, unsigned long long b, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32" TOKEN_TYPES "\n"
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
      "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35}, %36, %37, add, 1, 1, 0, 0;\n}"
      : FOUR(d, 0), FOUR(d, 4), FOUR(d, 8), FOUR(d, 12), FOUR(d, 16), FOUR(d, 20), FOUR(d, 24), FOUR(d, 28), FOUR(d, 32)
      : "l"(a), "l"(b), "r"(add));
}

// d [64, 40] = (add ? d : 0) + A B of tf32 [64, 8] and [40, 8], A being four sums of `columns_product`.
__device__ __forceinline__ void rows_product(float (&d)[40], int at, const unsigned* a, unsigned long long b, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %25, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n40k8.f32.tf32.tf32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
      "%17,%18,%19}, {%20,%21,%22,%23}, %24, add, 1, 1;\n}"
      : FOUR(d, at), FOUR(d, at + 4), FOUR(d, at + 8), FOUR(d, at + 12), FOUR(d, at + 16)
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "l"(b), "r"(add));
}

// The same in all lanes; the compiler is told so.
__device__ __forceinline__ unsigned uniform(unsigned v) { return __shfl_sync(~0u, v, 0); }

// Y^T of a step: sums of rows 0 to 31 of both tokens and, in the lanes that have them, of rows 32 to 35.
__device__ __forceinline__ void rotate_tokens(float (&y)[40], unsigned x, unsigned signs, unsigned mix, unsigned half) {
  float z[36];
  begin_products();
#pragma unroll
  for (int k = 0; k < SIGNS; k++) {
    const int odd = C == 32 ? k / 2 : 0;
    const unsigned tile = C == 32 ? k : k % 4, negated = C == 32 || k < 4 ? signs : signs + 4 * 2048 * half;
    columns_product(z, operand(negated, 1024, tile * 2048), operand(x, PITCH, odd * ODD + 2 * (k - 2 * odd) * PITCH),
                    k > 0);
  }
  end_products(z);
  unsigned a[36];                      // rounded to tf32
#pragma unroll
  for (int i = 0; i < 36; i++) a[i] = __float_as_uint(z[i]) + 0x1000;
  begin_products();
#pragma unroll
  for (int k = 0; k < 5; k++)
#pragma unroll
    for (int token = 0; token < 2; token++)
      rows_product(y, 20 * token, a + 4 * (k + 4 * token), operand(mix, MIX_ROWS * 16, (5 * token + k) * MIX_TILE),
                   k > 0);
  end_products(y);
}

// Element (row 8 j + 2 t + e, column 2 g + h) of a token, or (row 32 + 2 (t & 1) + e) of token t / 2 with j = 4.
__device__ __forceinline__ float element(const float (&y)[40], int token, int j, int e, int h) {
  return j == 4 ? y[16 + 2 * h + e] : y[24 * token + 4 * j + 2 * h + e];
}

// Bits 3, 2 and 1 of a bit's place change places with lane bits 4, 3 and 2, in both halves of the word.
__device__ __forceinline__ unsigned transpose(unsigned word, unsigned lane) {
  unsigned other = __shfl_xor_sync(~0u, word, 16);
  word = __byte_perm(word, other, lane & 16 ? 0x3715 : 0x6240);
  other = __shfl_xor_sync(~0u, word, 8);
  const unsigned nibbles = lane & 8 ? 0xf0f0f0f0u : 0x0f0f0f0fu, pairs = lane & 4 ? 0xccccccccu : 0x33333333u;
  word = (word & nibbles) | (__funnelshift_l(other, other, lane & 8 ? 28 : 4) & ~nibbles);
  other = __shfl_xor_sync(~0u, word, 4);
  return (word & pairs) | (__funnelshift_l(other, other, lane & 4 ? 30 : 2) & ~pairs);
}

// Adds a bit to the words of each plane: the sign of what the bits above leave, see rowwise_mma.cu.
__device__ __forceinline__ void fold_bits(float v, float cell, unsigned (&words)[BITS]) {
  if (MIDTREAD) v += 0.5f * cell;
#pragma unroll
  for (int bit = BITS - 1; bit >= 0; bit--) {
    words[bit] = __funnelshift_l(__float_as_uint(v), words[bit], 1);
    if (bit) v = fabsf(v) - (1 << (bit - 1)) * cell;
  }
}

__device__ __forceinline__ void from_gray(unsigned (&words)[BITS]) {
  words[BITS - 1] = ~words[BITS - 1];
#pragma unroll
  for (int bit = BITS - 2; bit >= 0; bit--) words[bit] ^= words[bit + 1];
}

// What a thread loads and prepares: every 128th four channels of one token; all of it (C = 32) or a quarter.
struct Share {
  unsigned token, first, place;        // of a step; channel / 4; where it goes in a slot
  __device__ __forceinline__ Share(unsigned warp, unsigned lane) {
    token = C == 32 ? warp : warp / 4;
    first = (C == 32 ? 0 : warp % 4 * (N / 16)) + lane;
    const unsigned row = first / (C / 4), chunk = first % (C / 4) / 2;
    const unsigned line = C == 32 ? token / 2 * R + row : token * R + row;
    place = (C == 32 ? token % 2 * ODD : 0) + chunk * PITCH + line * 16 + lane % 2 * 8;
  }
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

// Mean and 1 / deviation of a token that a warp has. The sums are those of `mma` of the token with itself and with
// ones, unless its mean is so far from zero that float32 would lose digits of the squares about it.
__device__ __forceinline__ float2 normalise(const uint2 (&v)[PIECES], float epsilon, unsigned lane) {
  const unsigned ones = 0x3f803f80u;
  float d[4] = {};                     // [lanes g][lanes g] of squares, of which the diagonal counts; one times lanes g
#pragma unroll
  for (int i = 0; i < PIECES; i++) mma(d, v[i].x, ones, v[i].y, ones, v[i].x, v[i].y);
  float sum = d[2] + d[3];
  sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
  const float mean = sum * (1.f / N);
  float squares = warp_sum(lane % 4 != lane / 8 ? 0.f : lane & 4 ? d[1] : d[0]) - sum * mean;
  if (sum * mean > 16.f * squares) {
    squares = 0.f;
#pragma unroll
    for (int i = 0; i < PIECES * 4; i++) {
      const unsigned pair = (&v[i / 4].x)[i / 2 % 2];
      const float off = (i % 2 ? high_half(pair) : low_half(pair)) - mean;
      squares = fmaf(off, off, squares);
    }
    squares = warp_sum(squares);
  }
  return make_float2(mean, rsqrtf(squares * (1.f / N) + epsilon));
}

// Four neighbouring channels times their signs.
__device__ __forceinline__ float4 signed_floats(uint2 v, uint2 flip) {
  v.x ^= flip.x, v.y ^= flip.y;
  return make_float4(low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y));
}

// A thread's channels of a token in shared memory: LayerNorm and modulate, or GELU, or nothing; signs.
__device__ __forceinline__ void prepare(const Rowwise& p, unsigned char* slot, const float4* table,
                                        const uint2 (&flips)[PIECES], const Share& share, unsigned lane) {
  uint2 v[PIECES];
#pragma unroll
  for (int i = 0; i < PIECES; i++) v[i] = *(const uint2*)(slot + share.place + i * STRIDE);
  float2 moments;
  if (PRE == 1) moments = normalise(v, p.epsilon, lane), moments.x *= -moments.y;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    uint2 out = v[i];
    float4 by, to;
    if (PRE == 1) by = table[2 * 32 * i + lane], to = table[2 * 32 * i + 32 + lane];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      unsigned& pair = (&out.x)[j];
      float low = low_half(pair), high = high_half(pair);
      if (PRE == 1) {
        low = fmaf(fmaf(low, moments.y, moments.x), (&by.x)[2 * j], (&to.x)[2 * j]);
        high = fmaf(fmaf(high, moments.y, moments.x), (&by.x)[2 * j + 1], (&to.x)[2 * j + 1]);
      }
      if (PRE == 2) low = gelu(low), high = gelu(high);
      if (PRE) pair = token_pair(low, high);
    }
    if (PRE != 1) out.x ^= flips[i].x, out.y ^= flips[i].y;
    *(uint2*)(slot + share.place + i * STRIDE) = out;
  }
}

// Constants: tiles of H_C for `columns_product`, of mix for `rows_product`.
__device__ __forceinline__ void make_constants(const Rowwise& p, unsigned char* shared) {
  for (unsigned i = threadIdx.x; i < SIGNS * 128; i += THREADS) {  // [tile][8 columns][64 rows]
    const unsigned tile = i / 128, row = i % 64, low = 2 * (row % 8) + row / 8 % 2, warp = row / 16;
    unsigned pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const unsigned k = i / 64 % 2 * 8 + 2 * j;
      const unsigned parity = C == 32 ? warp % 2 & tile : __popc(warp & tile & 3) + tile / 4;
      const unsigned a = __popc(low & k) + parity & 1, b = __popc(low & (k + 1)) + parity & 1;
      pairs[j] = C == 32 && warp / 2 != tile / 2 ? 0 : ONES | a << 15 | b << 31;
    }
    *(uint4*)(shared + SIGNS_AT + i * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  // [token][tile][half][output n][4]. Sums 2 t and 2 t + 1 of a tile are channels t and t + 4 of the next product. The
  // first four rows of the second token are in the tile of the last four of the first. All loads, then all stores: one
  // latency, not ten.
  for (unsigned i = threadIdx.x; i < MIX_TILE / 4; i += THREADS) {
    const unsigned n = i / 4 % MIX_ROWS, k = 2 * (i % 4) + i / (MIX_ROWS * 4);
    float value[10];
#pragma unroll
    for (unsigned j = 0; j < 10; j++) {
      const unsigned token = j / 5, at = 8 * (j % 5) + k - 4 * token;
      const unsigned row = token ? (n < 8 ? n + 28 : n - 8) : n;  // of Y; those from 36 on are none
      value[j] = at < R && row < R && (token == 0 || n >= 4) ? p.mix[at * R + row] : 0.f;
    }
#pragma unroll
    for (unsigned j = 0; j < 10; j++) ((float*)(shared + MIX_AT))[j * (MIX_TILE / 4) + i] = value[j];
  }
}
