// One pass over the tokens: (LayerNorm and modulate | GELU | nothing) -> random signs -> Hadamard -> scale of the token
// -> quantise -> bit planes in the layout of the GEMM, with the code sum and the low-rank down-projection on the way.
//
// A token [N] is seen as X [R, C], C = 32 BLOCKS; the rotation is Y = mix^T X H_C * NORM with any R x R matrix of small
// integers (a Hadamard matrix for the full rotation, the identity for rotation in blocks of C). BLOCKS warps do one
// token, each a block of 32 columns. mix^T X runs on the tensor cores in bf16: the matrix is exact, and X is split in
// two bf16 halves, so 16 bits of X take part (all of X when nothing comes before). Five butterflies of H_C run over a
// warp's registers and lanes, and those between blocks through shared memory.
//
// Macros: R, BLOCKS, TOKENS (of a round of a thread block), BITS, RANK, CENTER = 0 | 1,
// PRE = 0 nothing | 1 LayerNorm and modulate | 2 GELU(tanh).

struct Rowwise {
  const uint2* x;                 // [M][N] bf16
  const uint2* scale;             // [M / image_tokens][N] bf16
  const uint2* shift;             // the same
  const float* mix;               // [R][R]
  const unsigned* signs;          // [N / 32] bit 1: the channel is negated
  const uint4* down;              // [N / 16][32] mma fragments of the down-projection [16][N] bf16 (see packing.py)
  uint4* planes;
  int* code_sum;                  // [M]
  float* step;                    // [M]
  float* offset;                  // [M], with CENTER
  unsigned short* low;            // [M][16] bf16, with RANK
  int m, image_tokens, tokens_per_block;
  float norm, cell, rounding, epsilon;
};

constexpr int C = 32 * BLOCKS, N = R * C, UNITS = N / 128, WARPS = TOKENS * BLOCKS;
constexpr int SLOTS = (R + 3) / 4;       // rows 4 q + t of X that a thread feeds, t = lane % 4
constexpr int K_TILES = (SLOTS + 3) / 4, OUT = (R + 7) / 8, M_TILES = (OUT + 1) / 2;
constexpr bool SPLIT = PRE != 0;         // otherwise X is bf16 as it comes
constexpr int STRIDE = N / 2 + 4;        // words of a token in shared memory; the 4 spread the banks
static_assert(N % 128 == 0 && R <= 48, "width");

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

__device__ __forceinline__ float gelu(float x) {
  // x sigmoid(2 u): the codes must not depend on an approximate tanh.
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * (-2.3022082f - 0.10294324f * x * x)));  // exp(-2 u)
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.f + e));
  return x * r;
}

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_half(float (&d)[4], const unsigned (&a)[4], unsigned b0) {  // k = 8
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
}

// One k16 step of mix^T X for four columns, all rows; what is left of K may fill only half an instruction.
__device__ __forceinline__ void multiply(float (&d)[M_TILES][4], const unsigned (&mix)[M_TILES][K_TILES][4], int tile_k,
                                         unsigned b0, unsigned b1) {
#pragma unroll
  for (int i = 0; i < M_TILES; i++)
    SLOTS - 4 * tile_k <= 2 ? mma_half(d[i], mix[i][tile_k], b0) : mma(d[i], mix[i][tile_k], b0, b1);
}

// Eight codes as nibbles of `x`, code i at nibble 4 i1 + 2 i0 + i2: two bit swaps leave plane p in byte p, in order.
__device__ __forceinline__ unsigned nibbles_to_planes(unsigned x) {
  unsigned t = ((x >> 14) ^ x) & 0x0000ccccu;
  x ^= t ^ (t << 14);
  t = ((x >> 7) ^ x) & 0x00aa00aau;
  return x ^ t ^ (t << 7);
}

// Four lanes hold bytes p = 0..3 of their own eight columns; afterwards lane t holds plane t of all 32 columns.
__device__ __forceinline__ unsigned transpose_quad(unsigned v, int t) {
  unsigned other = __shfl_xor_sync(~0u, v, 1);
  v = __byte_perm(v, other, t & 1 ? 0x3715 : 0x6240);
  other = __shfl_xor_sync(~0u, v, 2);
  return __byte_perm(v, other, t & 2 ? 0x3276 : 0x5410);
}

// Sum over the BLOCKS warps of a token; `scratch` has a float for each of them, and its own for each use in a round.
__device__ __forceinline__ float token_sum(float v, float* scratch, int token, int block) {
  v = warp_sum(v);
  if (BLOCKS == 1) return v;
  if ((threadIdx.x & 31) == 0) scratch[token * BLOCKS + block] = v;
  asm volatile("bar.sync %0, %1;" ::"r"(token + 1), "n"(32 * BLOCKS) : "memory");
  v = 0.f;
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) v += scratch[token * BLOCKS + i];
  return v;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 16 / WARPS) rowwise(const __grid_constant__ Rowwise p) {
  // Two rounds of planes [BITS][UNITS][TOKENS][4]; with BLOCKS > 1, what its warps exchange; with RANK, TOKENS tokens
  // of bf16 and WARPS x 128 floats.
  extern __shared__ unsigned memory[];
  float4* exchange = (float4*)(memory + 2 * BITS * UNITS * TOKENS * 4);
  unsigned* rotated = (unsigned*)(exchange + (BLOCKS > 1 ? WARPS * OUT * 2 * 32 : 0));
  __shared__ float scratch[5][WARPS];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int block = warp % BLOCKS, own = warp / BLOCKS;  // of the columns of Y, of the tokens of this round

#if __CUDA_ARCH__ >= 900  // see gemm_common.cuh
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif

  unsigned mix[M_TILES][K_TILES][4];
#pragma unroll
  for (int i = 0; i < M_TILES * K_TILES * 4; i++) {
    const int tile_m = i / 4 / K_TILES, tile_k = i / 4 % K_TILES, part = i % 4;
    const int row = 16 * tile_m + g + 8 * (part & 1), column = 16 * tile_k + 8 * (part >> 1) + t;
    const float a = row < R && column < R ? p.mix[column * R + row] : 0.f;
    const float b = row < R && column + 4 < R ? p.mix[(column + 4) * R + row] : 0.f;
    mix[tile_m][tile_k][part] = 16 * tile_m + 8 * (part & 1) < R ? bf16_pair(a, b) : 0;
  }
  // Signs of what a thread reads, columns 4 g .. 4 g + 3 of a row: four bits a row, or masks for pairs of bf16.
  unsigned negate[(SLOTS + 7) / 8] = {};
  uint2 flip[SPLIT ? 1 : SLOTS];
#pragma unroll
  for (int slot = 0; slot < SLOTS; slot++) {
    const int row = 4 * slot + t;
    const unsigned four = row < R ? p.signs[row * BLOCKS + block] >> (4 * g) & 15 : 0;
    if (SPLIT)
      negate[slot / 8] |= four << (slot % 8 * 4);
    else
      flip[slot] = make_uint2((four & 1) << 15 | (four & 2) << 30, (four & 4) << 13 | (four & 8) << 28);
  }
  const float sign[2] = {t & 1 ? -1.f : 1.f, t & 2 ? -1.f : 1.f};
  const bool last_real = 8 * (OUT - 1) + g < R;  // rows past R exist in the last group only

  const int begin = blockIdx.x * p.tokens_per_block, end = min(p.m, begin + p.tokens_per_block);
  for (int base = begin, round = 0; base < end; base += TOKENS, round ^= 1) {
    const int token = min(base + own, end - 1);  // spare warps of the last round repeat its last token
    const bool store = base + own < end;
    // Or the compiler takes every single sign out of the loop and spills them.
#pragma unroll
    for (int i = 0; i < (SLOTS + 7) / 8; i++) asm volatile("" : "+r"(negate[i]));
    const int thread_at = (t * C + 32 * block) / 4 + g;
    const uint2* x = p.x + (long long)token * (N / 4) + thread_at;
    auto there = [&](int slot) { return slot < SLOTS && 4 * slot + t < R; };

    uint2 raw[SLOTS];
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++) raw[slot] = there(slot) ? x[slot * C] : make_uint2(0, 0);
    float mean = 0.f, deviation = 1.f;
    if (PRE == 1) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int i = 0; i < SLOTS; i++)
        sum += (low_half(raw[i].x) + high_half(raw[i].x)) + (low_half(raw[i].y) + high_half(raw[i].y));
      mean = token_sum(sum, scratch[3], own, block) / N;
#pragma unroll
      for (int i = 0; i < SLOTS; i++)
        if (there(i)) {
          const float a = low_half(raw[i].x) - mean, b = high_half(raw[i].x) - mean;
          const float c = low_half(raw[i].y) - mean, d = high_half(raw[i].y) - mean;
          squares += (a * a + b * b) + (c * c + d * d);
        }
      deviation = rsqrtf(token_sum(squares, scratch[4], own, block) / N + p.epsilon);
    }
    const long long image = PRE == 1 ? (long long)(token / p.image_tokens) * (N / 4) + thread_at : 0;

    float d[4][M_TILES][4] = {};         // mix^T X: columns 4 (2 t + e) + j, rows g and g + 8
    if (!SPLIT) {
#pragma unroll
      for (int slot = 0; slot < SLOTS; slot++) raw[slot].x ^= flip[slot].x, raw[slot].y ^= flip[slot].y;
#pragma unroll
      for (int tile_k = 0; tile_k < K_TILES; tile_k++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          auto pair = [&](int slot) {
            const uint2 a = raw[min(slot, SLOTS - 1)], b = raw[min(slot + 1, SLOTS - 1)];
            const unsigned both = __byte_perm(j < 2 ? a.x : a.y, j < 2 ? b.x : b.y, j % 2 ? 0x7632 : 0x5410);
            return slot >= SLOTS ? 0 : slot + 1 >= SLOTS ? both & 0xffffu : both;
          };
          multiply(d[j], mix, tile_k, pair(4 * tile_k), pair(4 * tile_k + 2));
        }
    } else {
#pragma unroll
      for (int tile_k = 0; tile_k < K_TILES; tile_k++) {
        float v[4][4] = {};              // slot, column 4 g + j
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int slot = 4 * tile_k + i;
          if (!there(slot)) continue;
          const uint2 r = raw[min(slot, SLOTS - 1)];
          float w[4] = {low_half(r.x), high_half(r.x), low_half(r.y), high_half(r.y)};
          if (PRE == 1) {
            const uint2 s = p.scale[image + slot * C], o = p.shift[image + slot * C];
            w[0] = fmaf(w[0] - mean, fmaf(deviation, low_half(s.x), deviation), low_half(o.x));
            w[1] = fmaf(w[1] - mean, fmaf(deviation, high_half(s.x), deviation), high_half(o.x));
            w[2] = fmaf(w[2] - mean, fmaf(deviation, low_half(s.y), deviation), low_half(o.y));
            w[3] = fmaf(w[3] - mean, fmaf(deviation, high_half(s.y), deviation), high_half(o.y));
          }
#pragma unroll
          for (int j = 0; j < 4; j++) {
            if (PRE == 2) w[j] = gelu(w[j]);
            const unsigned bit = negate[slot / 8] << (31 - slot % 8 * 4 - j) & 0x80000000u;
            v[i][j] = __uint_as_float(__float_as_uint(w[j]) ^ bit);
          }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const unsigned b0 = bf16_pair(v[0][j], v[1][j]), b1 = bf16_pair(v[2][j], v[3][j]);
          multiply(d[j], mix, tile_k, b0, b1);
          multiply(d[j], mix, tile_k, bf16_pair(v[0][j] - low_half(b0), v[1][j] - high_half(b0)),
                   bf16_pair(v[2][j] - low_half(b1), v[3][j] - high_half(b1)));
        }
      }
    }

    float y[OUT][8];                     // rows 8 s + g, columns 32 block + 8 t + i
#pragma unroll
    for (int s = 0; s < OUT; s++) {
      float(&r)[8] = y[s];
#pragma unroll
      for (int j = 0; j < 4; j++) {      // columns 8 t + j and 8 t + 4 + j
        const float a = d[j][s / 2][s % 2 * 2], b = d[j][s / 2][s % 2 * 2 + 1];
        r[j] = a + b, r[4 + j] = a - b;
      }
#pragma unroll
      for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++)
          if (!(i & bit)) {
            const float a = r[i], b = r[i | bit];
            r[i] = a + b, r[i | bit] = a - b;
          }
#pragma unroll
      for (int bit = 0; bit < 2; bit++)
#pragma unroll
        for (int i = 0; i < 8; i++) r[i] = fmaf(sign[bit], r[i], __shfl_xor_sync(~0u, r[i], 1 << bit));
    }

    if (BLOCKS > 1) {                    // the butterflies between blocks
      float4* mail = exchange + own * BLOCKS * OUT * 2 * 32 + lane;
#pragma unroll
      for (int i = 0; i < OUT * 2; i++) {
        const float* r = &y[i / 2][i % 2 * 4];
        mail[(i * BLOCKS + block) * 32] = make_float4(r[0], r[1], r[2], r[3]);
      }
      asm volatile("bar.sync %0, %1;" ::"r"(own + 1), "n"(32 * BLOCKS) : "memory");
#pragma unroll
      for (int i = 0; i < OUT * 8; i++) y[i / 8][i % 8] = 0.f;
#pragma unroll
      for (int from = 0; from < BLOCKS; from++) {
        const float plus = __popc(from & block) & 1 ? -1.f : 1.f;
#pragma unroll
        for (int i = 0; i < OUT * 2; i++) {
          const float4 v = mail[(i * BLOCKS + from) * 32];
          float* r = &y[i / 2][i % 2 * 4];
          r[0] = fmaf(plus, v.x, r[0]), r[1] = fmaf(plus, v.y, r[1]);
          r[2] = fmaf(plus, v.z, r[2]), r[3] = fmaf(plus, v.w, r[3]);
        }
      }
    }

    if (RANK) {                          // the branch takes the rotated token before centring and rounding
      const float f = p.norm;
#pragma unroll
      for (int s = 0; s < OUT; s++)
        if (s < OUT - 1 || last_real)
          *(uint4*)(rotated + own * STRIDE + ((8 * s + g) * C + 32 * block + 8 * t) / 2) =
              make_uint4(bf16_pair(y[s][0] * f, y[s][1] * f), bf16_pair(y[s][2] * f, y[s][3] * f),
                         bf16_pair(y[s][4] * f, y[s][5] * f), bf16_pair(y[s][6] * f, y[s][7] * f));
      __syncthreads();
      float low[4] = {};                 // rank g or g + 8, token 2 t or 2 t + 1
      const unsigned* b = rotated + g % TOKENS * STRIDE + t;
#pragma unroll 3
      for (int tile = warp; tile < N / 16; tile += WARPS) {
        const uint4 a = p.down[tile * 32 + lane];
        mma(low, {a.x, a.y, a.z, a.w}, b[tile * 8], b[tile * 8 + 4]);
      }
      float* partial = (float*)(rotated + TOKENS * STRIDE);
#pragma unroll
      for (int i = 0; i < 4; i++) partial[warp * 128 + (2 * t + i % 2) * 16 + g + i / 2 * 8] = low[i];
      __syncthreads();
      if (threadIdx.x < TOKENS * 16 && base + threadIdx.x / 16 < end) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += partial[i * 128 + threadIdx.x];
        p.low[base * 16 + threadIdx.x] = (unsigned short)bf16_pair(sum, 0.f);
      }
    }

    float centre = 0.f;
    if (CENTER) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < OUT * 8; i++) sum += y[i / 8][i % 8];
      centre = token_sum(sum, scratch[0], own, block) / N;
#pragma unroll
      for (int i = 0; i < OUT * 8; i++) y[i / 8][i % 8] -= i / 8 < OUT - 1 || last_real ? centre : 0.f;
    }
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < OUT * 8; i++) total += fabsf(y[i / 8][i % 8]);
    total = token_sum(total, scratch[1], own, block);
    const float step = fmaxf(total / N * p.norm * p.cell, 1e-12f), to_cells = p.norm / step;

    // The words of a plane go through shared memory: the tokens of a round lie next to each other in every unit.
    unsigned* planes = memory + round * BITS * UNITS * TOKENS * 4;
    int codes = 0;
#pragma unroll
    for (int s = 0; s < OUT; s++) {
      // Adding 2^23 rounding down leaves floor(z) in the low bits; the rest of those numbers is taken off all at once.
      unsigned sum = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float z = fminf(fmaxf(fmaf(y[s][i], to_cells, p.rounding), 0.f), (1 << BITS) - 0.5f);
        const int nibble = (i >> 1 & 1) * 4 + (i & 1) * 2 + (i >> 2);
        sum += __float_as_uint(__fadd_rd(z, 8388608.f)) << 4 * nibble;
      }
      unsigned word = sum - 0xfb000000u;  // 2^23 as a float at nibbles 0 and 1; at the others it is 0 modulo 2^32
      const bool real = s < OUT - 1 || last_real;
      if (!real) word = 0;
      codes += (((word & 0x0f0f0f0fu) + (word >> 4 & 0x0f0f0f0fu)) * 0x01010101u) >> 24;
      const unsigned plane = transpose_quad(nibbles_to_planes(word), t);
      const int index = (8 * s + g) * BLOCKS + block;
      if (real && t < BITS) planes[((t * UNITS + (index >> 2)) * TOKENS + own) * 4 + (index & 3)] = plane;
    }
    const float all_codes = token_sum((float)codes, scratch[2], own, block);
    if (lane == 0 && block == 0 && store) {
      p.code_sum[token] = (int)all_codes;
      p.step[token] = step;
      if (CENTER) p.offset[token] = centre * p.norm;
    }
    __syncthreads();
    uint4* to = p.planes + (base >> 6) * (BITS * UNITS * 64) + (base & 63);
    for (int i = threadIdx.x; i < BITS * UNITS * TOKENS; i += 32 * WARPS)
      if (base + i % TOKENS < end) to[i / TOKENS * 64 + i % TOKENS] = ((const uint4*)planes)[i];
  }
}
