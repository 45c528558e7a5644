// Row-wise kernels for Hopper, R = 36, what both share: the products by wgmma straight from shared memory, no split of
// sums in halves, and the codes.
//
// A team is one warpgroup (C = 32, four tokens at a time) or two (C = 128, two tokens). Tokens are rounded to 16 bits
// once, on their way in. With Z = H_C X^T and Y^T = Z mix:
//   columns    H_C is operand A; X is operand B as it lies: 72 rows of two tokens, C = 128; of four, C = 32, where half
//              of A is zero and the upper 32 rows of sums are those of the odd tokens
//   rows       the sums are operand A of the next product as they lie, read as tf32 (11 bits); operand B is mix
// A thread then holds two columns c' = 2 g and 2 g + 1 of 36 sums; three exchanges between lanes make 16 columns of a
// row.
//
// More macros: C = 32 | 128.

constexpr int N = R * C, UNITS = N / 128;
constexpr int STEP = C == 32 ? 4 : 2;                      // tokens that a team does at a time
constexpr int TEAM_WARPS = C == 32 ? 4 : 8;
constexpr int PARTS = TEAM_WARPS * 2 / STEP;               // warps that share a token's sums
constexpr int SIGNS = C == 32 ? 4 : 8;                     // tiles of +-1, 64 x 16 each
constexpr int MIX_ROWS = 40, MIX_TILE = 2 * MIX_ROWS * 16; // a tile of mix: 8 x 40 tf32
constexpr int SIGNS_BYTES = SIGNS * 2048, MIX_BYTES = 10 * MIX_TILE;
constexpr int PLANE = N / 8;                               // bytes of a token's plane
constexpr int CODES = BITS * STEP * PLANE;                 // bytes of a step's codes
static_assert(R == 36 && (C == 32 || C == 128), "width");

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
__device__ __forceinline__ void rows_product(float* d, const unsigned* a, unsigned long long b, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %25, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n40k8.f32.tf32.tf32 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
      "%17,%18,%19}, {%20,%21,%22,%23}, %24, add, 1, 1;\n}"
      : FOUR(d, 0), FOUR(d, 4), FOUR(d, 8), FOUR(d, 12), FOUR(d, 16)
      : "r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3]), "l"(b), "r"(add));
}

// The same in all lanes; the compiler is told so.
__device__ __forceinline__ unsigned uniform(unsigned v) { return __shfl_sync(~0u, v, 0); }

// Y^T of a step: sums of rows 0 to 31 of both tokens and, in the lanes that have them, of rows 32 to 35.
__device__ __forceinline__ void rotate_rows(float (&y)[40], const float (&z)[36], unsigned mix) {
  unsigned a[36];                      // rounded to tf32
#pragma unroll
  for (int i = 0; i < 36; i++) a[i] = __float_as_uint(z[i]) + 0x1000;
  begin_products();
#pragma unroll
  for (int k = 0; k < 5; k++)
#pragma unroll
    for (int token = 0; token < 2; token++)
      rows_product(y + 20 * token, a + 4 * (k + 4 * token), operand(mix, MIX_ROWS * 16, (5 * token + k) * MIX_TILE),
                   k > 0);
  end_products(y);
#pragma unroll
  for (int i = 0; i < 4; i++) y[16 + i] += y[20 + i];  // one of them is zero
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

// What a thread adds to sums over both of its tokens.
template <class F>
__device__ __forceinline__ void add_up(float (&sums)[2], const float (&y)[40], unsigned t, F of) {
  float both = 0.f;
#pragma unroll
  for (int i = 0; i < 16; i++) {
    sums[0] += of(y[i]), sums[1] += of(y[24 + i]);
    if (i < 4) both += of(y[16 + i]);
  }
  sums[0] += t < 2 ? both : 0.f, sums[1] += t < 2 ? 0.f : both;
}

// Of a warp's two tokens, which one of the step.
__device__ __forceinline__ unsigned token_in_step(unsigned pair, unsigned warp) {
  return C == 32 ? 2 * pair + warp / 2 : pair;
}

// Leaves a warp's sums of its two tokens for the team.
__device__ __forceinline__ void publish(const float (&sums)[2], float (&to)[STEP][PARTS], unsigned warp, unsigned lane) {
  const float sum = fold<2, 16>(sums, lane);
  if (lane % 16 == 0) to[token_in_step(lane >> 4, warp)][C == 32 ? warp % 2 : warp] = sum;
}

__device__ __forceinline__ float total(const float (&of)[PARTS]) {
  float sum = of[0];
#pragma unroll
  for (int i = 1; i < PARTS; i++) sum += of[i];
  return sum;
}

// Both tokens' sums less what `centre` says.
__device__ __forceinline__ void take_off(float (&y)[40], const float (&centre)[2], unsigned t) {
#pragma unroll
  for (int i = 0; i < 40; i++) y[i] -= i < 16 ? centre[0] : i >= 24 ? centre[1] : t < 2 ? centre[0] : centre[1];
}

// The codes of a warp's part of two tokens, by planes in `stage`, and their sums in two halves of a word. cell: of both.
__device__ __forceinline__ void make_codes(const float (&y)[40], const float (&cells)[2], unsigned char* stage,
                                           unsigned& code_sum, unsigned warp, unsigned lane) {
  const unsigned g = lane >> 2, t = lane & 3;
  const float cell[3] = {cells[0], cells[1], t < 2 ? cells[0] : cells[1]};  // the last: of the one with the last rows
  unsigned words[BITS] = {}, upper[BITS] = {}, rest[BITS] = {};
#pragma unroll
  for (int i = 15; i >= 0; i--) {
    fold_bits(element(y, 0, i / 4, i / 2 % 2, i % 2), cell[0], words);
    fold_bits(element(y, 1, i / 4, i / 2 % 2, i % 2), cell[1], upper);
  }
#pragma unroll
  for (int bit = 0; bit < BITS; bit++) words[bit] |= upper[bit] << 16;
#pragma unroll
  for (int i = 3; i >= 0; i--) fold_bits(element(y, 0, 4, i / 2, i % 2), cell[2], rest);
  from_gray(words), from_gray(rest);
  unsigned count = 0, few = 0, last_rows = 0;
  stage += C == 32 ? warp / 2 * PLANE + warp % 2 * 2 : warp * 2;
  constexpr int TOKEN = C == 32 ? 2 * PLANE : PLANE;  // from a thread's first token to its second
  const unsigned row = g / 2 * 8 + 2 * t + g % 2;
#pragma unroll
  for (int bit = 0; bit < BITS; bit++) {
    rest[bit] &= 15;
    count += (__popc(words[bit] & 0xffff) | __popc(words[bit] >> 16) << 16) << bit;
    few += __popc(rest[bit]) << bit;
    last_rows |= rest[bit] << 4 * bit;
    const unsigned word = transpose(words[bit], lane);
    unsigned char* const to = stage + bit * STEP * PLANE + row * (C / 8);
    *(unsigned short*)to = word, *(unsigned short*)(to + TOKEN) = word >> 16;
  }
  last_rows = transpose(last_rows, lane);
  const unsigned last_row = 32 + t % 2 * 2 + g % 2;
  if (g / 2 < BITS)
    *(unsigned short*)(stage + g / 2 * STEP * PLANE + t / 2 * TOKEN + last_row * (C / 8)) = last_rows;
  count = __reduce_add_sync(~0u, count + (few << (t < 2 ? 0 : 16)));
  if (lane == 0) code_sum = count;
}

// Stores a step's codes and their sums; `first` is its first token, `member` one of the team's threads.
__device__ __forceinline__ void store_codes(const Rowwise& p, const unsigned char* stage,
                                            const unsigned (&code_sums)[TEAM_WARPS], int first, unsigned member) {
  unsigned char* const block = p.planes + (long long)(first >> 6) * (BITS * UNITS * 1024) + (first & 63) * 16;
#pragma unroll 1
  for (unsigned i = member; i < BITS * UNITS * STEP; i += 32 * TEAM_WARPS) {
    const unsigned token = i % STEP, unit = i / STEP % UNITS, plane = i / (STEP * UNITS);
    if (first + (int)token < p.m)
      *(uint4*)(block + (plane * UNITS + unit) * 1024 + token * 16) =
          *(const uint4*)(stage + (plane * STEP + token) * PLANE + unit * 16);
  }
  if (member < STEP && first + (int)member < p.m) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < PARTS; i++)
      sum += C == 32 ? code_sums[member % 2 * 2 + i] >> member / 2 * 16 & 0xffff : code_sums[i] >> member * 16 & 0xffff;
    p.code_sum[first + member] = sum;
  }
}

// H_C, as operand A of `columns_product`.
template <int THREADS>
__device__ __forceinline__ void make_signs(unsigned char* to) {
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
    *(uint4*)(to + i * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// mix, as operand B of `rows_product`: [token][tile][half][output n][4]. Sums 2 t and 2 t + 1 of a tile are channels t
// and t + 4 of the next product. The first four rows of the second token are in the tile of the last four of the first.
// All loads, then all stores: one latency, not ten.
template <int THREADS>
__device__ __forceinline__ void make_mix(const Rowwise& p, unsigned char* to) {
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
    for (unsigned j = 0; j < 10; j++) ((float*)to)[j * (MIX_TILE / 4) + i] = value[j];
  }
}
