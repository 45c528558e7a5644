// One pass over the tokens: (LayerNorm and modulate | GELU | nothing) -> random signs -> Hadamard -> scale of the token ->
// quantise -> bit planes in the layout of the GEMM, with the code sum and the low-rank down-projection on the way.
//
// A token [N] is seen as X [R, C], C = 32 BLOCKS; the rotation is Y = mix^T X H_C * NORM with any R x R matrix of small
// integers (a Hadamard matrix for the full rotation, the identity for rotation in blocks of C). One warp does one token.
// mix^T X runs on the tensor cores in bf16: the matrix is exact, and X is split in two bf16 halves, so 16 bits of X take part.
// H_C is 5 butterflies over a warp's registers and lanes, and log2 BLOCKS more over registers.
//
// Macros: R, BLOCKS, BITS, PRE = 0 nothing | 1 LayerNorm and modulate | 2 GELU(tanh), RANK, CENTER = 0 | 1.

struct Rowwise {
  const uint2* x;                 // [M][N] bf16
  const uint2* scale;             // [M / image_tokens][N] bf16
  const uint2* shift;             // the same
  const float* mix;               // [R][R]
  const unsigned* signs;          // [N / 32] bit 1: the channel is negated
  const uint4* down;              // [N / 16][32] mma fragments of the down-projection [16][N] bf16 (see packing.py)
  unsigned* planes;
  int* code_sum;                  // [M]
  float* step;                    // [M]
  float* offset;                  // [M], with CENTER
  unsigned short* low;            // [M][16] bf16, with RANK
  int m, image_tokens, tokens_per_block;
  float norm, cell, rounding, epsilon;
};

constexpr int C = 32 * BLOCKS, N = R * C, UNITS = N / 128, WARPS = 8;
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
  return __fdividef(x, 1.f + __expf(-x * (1.5957691216f + 0.0713548163f * x * x)));
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

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS == 1 ? 2 : 1) rowwise(const __grid_constant__ Rowwise p) {
  extern __shared__ unsigned memory[];   // RANK: WARPS tokens of bf16, then WARPS x 128 floats
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;

  unsigned mix[M_TILES][K_TILES][4];
#pragma unroll
  for (int i = 0; i < M_TILES * K_TILES * 4; i++) {
    const int tile_m = i / 4 / K_TILES, tile_k = i / 4 % K_TILES, part = i % 4;
    const int row = 16 * tile_m + g + 8 * (part & 1), column = 16 * tile_k + 8 * (part >> 1) + t;
    const float a = row < R && column < R ? p.mix[column * R + row] : 0.f;
    const float b = row < R && column + 4 < R ? p.mix[(column + 4) * R + row] : 0.f;
    mix[tile_m][tile_k][part] = bf16_pair(a, b);
  }
  unsigned negate[BLOCKS][(SLOTS + 7) / 8] = {};  // four bits a row: columns 4 g .. 4 g + 3
#pragma unroll
  for (int i = 0; i < BLOCKS * SLOTS; i++) {
    const int slot = i % SLOTS, block = i / SLOTS, row = 4 * slot + t;
    const unsigned four = row < R ? p.signs[row * BLOCKS + block] >> (4 * g) & 15 : 0;
    negate[block][slot / 8] |= four << (slot % 8 * 4);
  }
  const float sign[2] = {t & 1 ? -1.f : 1.f, t & 2 ? -1.f : 1.f};

  const int begin = blockIdx.x * p.tokens_per_block, end = min(p.m, begin + p.tokens_per_block);
  for (int base = begin; base < end; base += WARPS) {
    const int token = min(base + warp, end - 1);  // spare warps of the last round repeat its last token
    const uint2* x = p.x + (long long)token * (N / 4);
    auto at = [&](int block, int slot) { return ((4 * slot + t) * C + 32 * block) / 4 + g; };

    float mean = 0.f, deviation = 1.f;
    if (PRE == 1) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int i = 0; i < BLOCKS * SLOTS; i++)
        if (4 * (i % SLOTS) + t < R) {
          const uint2 v = x[at(i / SLOTS, i % SLOTS)];
          sum += low_half(v.x) + high_half(v.x) + low_half(v.y) + high_half(v.y);
        }
      mean = warp_sum(sum) / N;
#pragma unroll
      for (int i = 0; i < BLOCKS * SLOTS; i++)
        if (4 * (i % SLOTS) + t < R) {
          const uint2 v = x[at(i / SLOTS, i % SLOTS)];
          const float a = low_half(v.x) - mean, b = high_half(v.x) - mean;
          const float c = low_half(v.y) - mean, d = high_half(v.y) - mean;
          squares += a * a + b * b + c * c + d * d;
        }
      deviation = rsqrtf(warp_sum(squares) / N + p.epsilon);
    }

    float y[BLOCKS][OUT][8];             // rows 8 s + g, columns 32 block + 8 t + i
    float total = 0.f;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
      float d[4][M_TILES][4] = {};
#pragma unroll
      for (int tile_k = 0; tile_k < K_TILES; tile_k++) {
        const bool half = SLOTS - 4 * tile_k <= 2;  // what is left of K fills half an instruction
        float v[4][4];                   // slot, column 4 g + j
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int slot = 4 * tile_k + i;
#pragma unroll
          for (int j = 0; j < 4; j++) v[i][j] = 0.f;
          if (slot >= SLOTS || 4 * slot + t >= R) continue;
          const uint2 raw = x[at(block, slot)];
          v[i][0] = low_half(raw.x), v[i][1] = high_half(raw.x), v[i][2] = low_half(raw.y), v[i][3] = high_half(raw.y);
          if (PRE == 1) {
            const long long image = (long long)(token / p.image_tokens) * (N / 4) + at(block, slot);
            const uint2 s = p.scale[image], o = p.shift[image];
            v[i][0] = (v[i][0] - mean) * deviation * (1.f + low_half(s.x)) + low_half(o.x);
            v[i][1] = (v[i][1] - mean) * deviation * (1.f + high_half(s.x)) + high_half(o.x);
            v[i][2] = (v[i][2] - mean) * deviation * (1.f + low_half(s.y)) + low_half(o.y);
            v[i][3] = (v[i][3] - mean) * deviation * (1.f + high_half(s.y)) + high_half(o.y);
          }
#pragma unroll
          for (int j = 0; j < 4; j++) {
            if (PRE == 2) v[i][j] = gelu(v[i][j]);
            v[i][j] = __uint_as_float(__float_as_uint(v[i][j]) ^
                                      (negate[block][slot / 8] << (31 - slot % 8 * 4 - j) & 0x80000000u));
          }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const unsigned b0 = bf16_pair(v[0][j], v[1][j]), b1 = bf16_pair(v[2][j], v[3][j]);
#pragma unroll
          for (int i = 0; i < M_TILES; i++)
            half ? mma_half(d[j][i], mix[i][tile_k], b0) : mma(d[j][i], mix[i][tile_k], b0, b1);
          if (SPLIT) {
            const unsigned c0 = bf16_pair(v[0][j] - low_half(b0), v[1][j] - high_half(b0));
            const unsigned c1 = bf16_pair(v[2][j] - low_half(b1), v[3][j] - high_half(b1));
#pragma unroll
            for (int i = 0; i < M_TILES; i++)
              half ? mma_half(d[j][i], mix[i][tile_k], c0) : mma(d[j][i], mix[i][tile_k], c0, c1);
          }
        }
      }
#pragma unroll
      for (int s = 0; s < OUT; s++) {
        float(&r)[8] = y[block][s];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          // Columns 8 t + j and 8 t + 4 + j: the butterfly over bit 2 of the column.
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
    }
#pragma unroll
    for (int bit = 1; bit < BLOCKS; bit *= 2)
#pragma unroll
      for (int block = 0; block < BLOCKS; block++)
        if (!(block & bit))
#pragma unroll
          for (int i = 0; i < OUT * 8; i++) {
            const float a = y[block][i / 8][i % 8], b = y[block | bit][i / 8][i % 8];
            y[block][i / 8][i % 8] = a + b, y[block | bit][i / 8][i % 8] = a - b;
          }

    const bool last_real = 8 * (OUT - 1) + g < R;  // rows past R exist in the last group only
    auto all = [&](auto&& use) {
#pragma unroll
      for (int block = 0; block < BLOCKS; block++)
#pragma unroll
        for (int s = 0; s < OUT; s++) use(block, s, s < OUT - 1 || last_real);
    };

    if (RANK) {                          // the branch takes the rotated token before centring and rounding
      all([&](int block, int s, bool real) {
        float(&r)[8] = y[block][s];
        const float f = p.norm;
        if (real)
          *(uint4*)(memory + warp * STRIDE + ((8 * s + g) * C + 32 * block + 8 * t) / 2) =
              make_uint4(bf16_pair(r[0] * f, r[1] * f), bf16_pair(r[2] * f, r[3] * f), bf16_pair(r[4] * f, r[5] * f),
                         bf16_pair(r[6] * f, r[7] * f));
      });
      __syncthreads();
      float d[4] = {};
      for (int tile = warp; tile < N / 16; tile += WARPS) {
        const uint4 a = p.down[tile * 32 + lane];
        const unsigned* b = memory + g * STRIDE + tile * 8 + t;
        mma(d, {a.x, a.y, a.z, a.w}, b[0], b[4]);
      }
      float* partial = (float*)(memory + WARPS * STRIDE);
#pragma unroll
      for (int i = 0; i < 4; i++)        // rank g or g + 8, token 2 t or 2 t + 1
        partial[warp * 128 + (2 * t + i % 2) * 16 + g + i / 2 * 8] = d[i];
      __syncthreads();
      if (threadIdx.x < 128 && base + threadIdx.x / 16 < end) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += partial[i * 128 + threadIdx.x];
        p.low[base * 16 + threadIdx.x] = (unsigned short)bf16_pair(sum, 0.f);
      }
    }

    float centre = 0.f;
    if (CENTER) {
      float sum = 0.f;
      all([&](int block, int s, bool) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum += y[block][s][i];
      });
      centre = warp_sum(sum) / N;
      all([&](int block, int s, bool real) {
#pragma unroll
        for (int i = 0; i < 8; i++) y[block][s][i] -= real ? centre : 0.f;
      });
    }
    all([&](int block, int s, bool) {
#pragma unroll
      for (int i = 0; i < 8; i++) total += fabsf(y[block][s][i]);
    });
    const float step = fmaxf(warp_sum(total) / N * p.norm * p.cell, 1e-12f), to_cells = p.norm / step;

    int codes = 0;
    all([&](int block, int s, bool real) {
      // Adding 2^23 rounding down leaves floor(z) in the low bits; the rest of that number is taken off all at once.
      unsigned x = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float z = fminf(fmaxf(fmaf(y[block][s][i], to_cells, p.rounding), 0.f), (1 << BITS) - 0.5f);
        x += (__float_as_uint(__fadd_rd(z, 8388608.f)) - 0x4b000000u) << (4 * ((i >> 1 & 1) * 4 + (i & 1) * 2 + (i >> 2)));
      }
      if (!real) x = 0;
      codes += (((x & 0x0f0f0f0fu) + (x >> 4 & 0x0f0f0f0fu)) * 0x01010101u) >> 24;
      const unsigned plane = transpose_quad(nibbles_to_planes(x), t);
      const int word = (8 * s + g) * BLOCKS + block;
      if (real && t < BITS && base + warp < end)
        p.planes[(((token >> 6) * BITS + t) * UNITS + (word >> 2)) * 256 + (token & 63) * 4 + (word & 3)] = plane;
    });
    codes = __reduce_add_sync(~0u, codes);
    if (lane == 0 && base + warp < end) {
      p.code_sum[token] = codes;
      p.step[token] = step;
      if (CENTER) p.offset[token] = centre * p.norm;
    }
  }
}
