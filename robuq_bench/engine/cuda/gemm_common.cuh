// Shared by both bit-serial GEMMs: the arguments, the work split and the fused epilogue.
//
// Macros: UNITS = K / 128 (a unit is 128 channels: 16 bytes of one bit plane), BN = output channels of a tile,
// BM = tokens of a tile, WORKERS = groups of 128 threads, CHUNK = units of a stage, STAGES = stages of a ring,
// LOWRANK, OFFSET = 0 | 1, EPILOGUE = 0 none | 1 GELU(tanh) | 2 gate * y + residual.
//
// Packed operands (both in rows of 16 bytes, so that every copy is linear and free of bank conflicts):
//   activations [M/64][bits][UNITS][64 tokens][16 B]      weights [N/64][UNITS][P, Q][64 channels][16 B]

struct Gemm {
  const uint4* activations;
  const uint4* weights;
  const int* code_sum;            // [M] sum of the codes of a token
  const float* step;              // [M]
  const float* offset;            // [M] or null
  const float* alpha;             // [N up to 64]
  const float* weight_sum;        // [N up to 64] sum of the ternary weights of a channel
  const float* bias;              // [N up to 64]
  const unsigned* down;           // [M][8] pairs of bf16
  const uint2* up;                // [N up to 64] * 4, in the order of mma fragments (see packing.py)
  const unsigned short* gate;     // [ceil(M / gate_rows)][N] bf16
  const unsigned short* residual; // [M][N] bf16
  unsigned short* out;            // [M][N] bf16
  int m, n, bits, gate_rows;
  float shift;                    // level of code c is step * (c + shift)
};

struct Channels {                 // one tile's per-channel constants, in shared memory
  float alpha[BN], shifted_sum[BN], weight_sum[OFFSET ? BN : 4], bias[BN];
  uint2 up[LOWRANK ? BN * 4 : 1];
};

constexpr int PIECE = 64 * 16;    // bytes: 64 rows of one unit of one plane

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void worker_barrier(int worker) {
  asm volatile("bar.sync %0, 128;" ::"r"(worker + 1) : "memory");
}

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float gelu(float x) {
  // tanh.approx is good to 2^-11; the result is rounded to bf16 (2^-9) anyway.
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(x * (0.7978845608f + 0.0356774081f * x * x)));
  return 0.5f * x + 0.5f * x * t;
}

__device__ void load_channels(const Gemm& p, Channels& channels, int n0, int thread, int threads) {
  const int padded = (p.n + 63) / 64 * 64;
  for (int i = thread; i < BN; i += threads) {
    const bool real = n0 + i < padded;
    channels.alpha[i] = real ? p.alpha[n0 + i] : 0.f;
    channels.shifted_sum[i] = real ? p.shift * p.weight_sum[n0 + i] : 0.f;
    if (OFFSET) channels.weight_sum[i] = real ? p.weight_sum[n0 + i] : 0.f;
    channels.bias[i] = real ? p.bias[n0 + i] : 0.f;
  }
  if (LOWRANK)
    for (int i = thread; i < BN * 4; i += threads)
      channels.up[i] = n0 * 4 + i < padded * 4 ? p.up[n0 * 4 + i] : make_uint2(0, 0);
}

// The two tokens (rows g and g + 8 of an m16 tile) whose accumulators a thread holds.
struct Tokens {
  int row[2], code_sum[2];
  float step[2], offset[2];
  unsigned down[4];
};

__device__ __forceinline__ Tokens load_tokens(const Gemm& p, int row0, int lane) {
  Tokens t;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = row0 + (lane >> 2) + 8 * h;
    const bool real = row < p.m;
    t.row[h] = row;
    t.code_sum[h] = real ? p.code_sum[row] : 0;
    t.step[h] = real ? p.step[row] : 0.f;
    t.offset[h] = OFFSET && real ? p.offset[row] : 0.f;
    if (LOWRANK) {
      t.down[h] = real ? p.down[row * 8 + (lane & 3)] : 0;
      t.down[h + 2] = real ? p.down[row * 8 + (lane & 3) + 4] : 0;
    }
  }
  return t;
}

// Finish 16 tokens x 32 channels held by one warp. The packed weights are permuted inside each group of 32 channels so
// that a thread's sums acc[j][2 h + e] are channels 8 (lane % 4) + 2 j + e of token h: eight neighbours, one
// 16-byte store, and no detour through shared memory. `col` counts channels inside the tile that starts at n0.
__device__ __forceinline__ void finish(const Gemm& p, const Channels& ch, const Tokens& t, const int (*acc)[4], int n0,
                                       int col, int lane) {
  const int c0 = col + 8 * (lane & 3);
  float y[4][4];
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int c = c0 + 2 * j + e;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float level_sum = t.step[h] * ((float)acc[j][2 * h + e] + ch.shifted_sum[c]);
        if (OFFSET) level_sum += t.offset[h] * ch.weight_sum[c];
        y[j][2 * h + e] = ch.alpha[c] * level_sum + ch.bias[c];
      }
    }
  if (LOWRANK)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint2 b = ch.up[(col / 8 + j) * 32 + lane];
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(y[j][0]), "+f"(y[j][1]), "+f"(y[j][2]), "+f"(y[j][3])
          : "r"(t.down[0]), "r"(t.down[1]), "r"(t.down[2]), "r"(t.down[3]), "r"(b.x), "r"(b.y));
    }
  const int n = n0 + c0;
  const bool whole = n + 8 <= p.n && p.n % 8 == 0;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (t.row[h] >= p.m) continue;
    const long long at = (long long)t.row[h] * p.n + n;
    const long long gate_at = EPILOGUE == 2 ? (long long)(t.row[h] / p.gate_rows) * p.n + n : 0;
    if (whole) {
      uint4 gate, residual;
      if (EPILOGUE == 2) {
        gate = *(const uint4*)(p.gate + gate_at);
        residual = *(const uint4*)(p.residual + at);
      }
      unsigned pairs[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float a = y[j][2 * h], b = y[j][2 * h + 1];
        if (EPILOGUE == 1) a = gelu(a), b = gelu(b);
        if (EPILOGUE == 2) {
          const unsigned g = (&gate.x)[j], r = (&residual.x)[j];
          a = low_half(g) * a + low_half(r), b = high_half(g) * b + high_half(r);
        }
        pairs[j] = bf16_pair(a, b);
      }
      *(uint4*)(p.out + at) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (n + i >= p.n) continue;
        float a = y[i / 2][2 * h + i % 2];
        if (EPILOGUE == 1) a = gelu(a);
        if (EPILOGUE == 2)
          a = low_half((unsigned)p.gate[gate_at + i]) * a + low_half((unsigned)p.residual[at + i]);
        p.out[at + i] = (unsigned short)bf16_pair(a, 0.f);
      }
    }
  }
}

// A block works through a contiguous run of tiles, ordered so that neighbours share their weights; the weights of one
// run of `tiles` token tiles stay in shared memory. Worker w takes tiles first + w, first + w + WORKERS, ...
struct Run {
  int n_tile, first, tiles;
};

__device__ __forceinline__ bool next_run(const Gemm& p, int& done, Run& run) {
  const int m_tiles = (p.m + BM - 1) / BM, n_tiles = (p.n + BN - 1) / BN;
  const long long all = (long long)m_tiles * n_tiles;
  const int end = (int)(all * (blockIdx.x + 1) / gridDim.x);
  if (done == 0) done = (int)(all * blockIdx.x / gridDim.x) + 1;  // kept one ahead, so that 0 means "not begun"
  const int at = done - 1;
  if (at >= end) return false;
  run.n_tile = at / m_tiles;
  run.first = at % m_tiles;
  const int stop = min(end, (run.n_tile + 1) * m_tiles);
  run.tiles = stop - at;
  done = stop + 1;
  return true;
}

// The order in which a worker reads its activations: tile, then plane from high to low, then chunk of K.
struct Cursor {
  int tile, plane, chunk;
  __device__ __forceinline__ void advance(int bits) {
    if (++chunk == UNITS / CHUNK) {
      chunk = 0;
      if (--plane < 0) plane = bits - 1, tile += WORKERS;
    }
  }
};
