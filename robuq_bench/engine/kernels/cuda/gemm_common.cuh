// Shared by both bit-serial GEMMs: the arguments, the work split and the fused epilogue.
//
// Macros: UNITS = K / 128 (a unit is 128 channels: 16 bytes of one bit plane), BN = output channels of a block's tile,
// BM = tokens of a tile, WORKERS = groups of 128 threads, LOWRANK = 0 | 1 | 2 fed by sums, OFFSET = 0 | 1,
// EPILOGUE = 0 none | 1 GELU(tanh) | 2 gate * y + residual, NEXT = 0 | 1 the next layer's signs | 2 and its low-rank
// branch; and those of each kernel.
//
// Packed operands (both in rows of 16 bytes, so that every copy is linear and free of bank conflicts):
//   activations [M/64][bits][UNITS][64 tokens][16 B]      weights [N/128][UNITS][P, Q][128 channels][16 B]

struct Gemm {
  const uint4* activations;
  const uint4* weights;
  const int* code_sum;            // [M] sum of the codes of a token
  const float* step;              // [M]
  const float* offset;            // [M] or null
  const float* alpha;             // [N up to 128]
  const float* weight_sum;        // [N up to 128] sum of the ternary weights of a channel
  const float* bias;              // [N up to 128]
  const unsigned* down;           // [M][8] pairs of bf16 | [M up to 64 / 16][8][32] sums as `feed` leaves them
  const uint2* up;                // [N up to 128] * 4, in the order of mma fragments (see packing.py)
  const uint4* next_flips;        // [N] 16 bits: the sign bit where the next layer negates the output, with NEXT
  const uint4* next_down;         // [N] * 2: its down-projection of signed outputs (see rotation.py), with NEXT = 2
  int* next_sums;                 // [M up to 64 / 16][8][32], what that gives, added to what is there: see `feed`
  const unsigned short* gate;     // [ceil(M / gate_rows)], rows gate_stride apart, bf16
  const unsigned short* residual; // [M][N] bf16
  unsigned short* out;            // [M][N] bf16
  int m, n, bits, gate_rows, gate_stride;
  int aligned;                    // every row of gate, residual and out starts at a multiple of 16 bytes
  float shift;                    // level of code c is step * (c + shift)
};

struct Channels {                 // one tile's per-channel constants, in shared memory; both sums times alpha
  float alpha[BN], shifted_sum[BN], bias[BN], weight_sum[OFFSET ? BN : 4];
  uint2 up[LOWRANK ? BN * 4 : 1];
  uint4 next_down[NEXT == 2 ? BN * 2 : 1], next_flips[NEXT ? BN / 8 : 1];
};

constexpr int PIECE = 64 * 16;    // bytes: 64 rows of one unit of one plane

// Sums are made floats by their bits: MAGIC + x, seen as a float, is 1.5 * 2^23 + x. The code sum comes off with it.
constexpr int MAGIC = 0x4B400000;

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Hopper may launch a kernel while the one before it ends; nothing that one wrote is touched before this.
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_the_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void worker_barrier(int worker) {
  asm volatile("bar.sync %0, 128;" ::"r"(worker + 1) : "memory");
}

// The same value, which the compiler then knows to be one for the whole warp: descriptors made of it stay in uniform
// registers. Else each wgmma waits for two transfers out of vector registers, and the unit with it.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// gelu(2 v), tanh form. The halving is in the channels' constants (`SCALE`), which saves an instruction a value.
constexpr float SCALE = EPILOGUE == 1 ? 0.5f : 1.f;

__device__ __forceinline__ float gelu_of_twice(float v) {
  // tanh.approx is good to 2^-11; the result is rounded to bf16 (2^-9) anyway.
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(v * (1.5957691216f + 0.2854192651f * v * v)));
  return v * t + v;
}

__device__ __forceinline__ unsigned scaled(unsigned pair) {
  return bf16_pair(SCALE * low_half(pair), SCALE * high_half(pair));
}

// By WORKERS * 128 threads; all loads, then all stores, as they may come from DRAM.
__device__ __forceinline__ void load_channels(const Gemm& p, Channels& channels, int n0) {
  constexpr int THREADS = WORKERS * 128, EACH = (BN + THREADS - 1) / THREADS;
  constexpr int UPS = LOWRANK ? (BN * 4 + THREADS - 1) / THREADS : 0;
  constexpr int DOWNS = NEXT == 2 ? (BN * 2 + THREADS - 1) / THREADS : 0;
  const int thread = threadIdx.x, real = min(BN, (p.n + 127) / 128 * 128 - n0);
  float alpha[EACH], sum[EACH], bias[EACH];
  uint2 up[UPS + 1];
  uint4 down[DOWNS + 1], flips;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = thread + j * THREADS, n = n0 + i;
    alpha[j] = i < real ? p.alpha[n] : 0.f, sum[j] = i < real ? p.weight_sum[n] : 0.f;
    bias[j] = i < real ? p.bias[n] : 0.f;
  }
#pragma unroll
  for (int j = 0; j < UPS; j++) {
    const int i = thread + j * THREADS;
    up[j] = i < real * 4 ? p.up[n0 * 4 + i] : make_uint2(0, 0);
  }
#pragma unroll
  for (int j = 0; j < DOWNS; j++) {
    const int i = thread + j * THREADS;
    down[j] = i < real * 2 ? p.next_down[n0 * 2 + i] : make_uint4(0, 0, 0, 0);
  }
  if (NEXT && thread < BN / 8) flips = thread < real / 8 ? p.next_flips[n0 / 8 + thread] : make_uint4(0, 0, 0, 0);
  asm volatile("" ::: "memory");
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const int i = thread + j * THREADS;
    if (i >= BN) break;
    channels.alpha[i] = SCALE * alpha[j];
    channels.shifted_sum[i] = p.shift * (SCALE * alpha[j] * sum[j]);
    if (OFFSET) channels.weight_sum[i] = SCALE * alpha[j] * sum[j];
    channels.bias[i] = SCALE * bias[j];
  }
#pragma unroll
  for (int j = 0; j < UPS; j++) {
    const int i = thread + j * THREADS;
    if (i >= BN * 4) break;
    channels.up[i] = EPILOGUE == 1 ? make_uint2(scaled(up[j].x), scaled(up[j].y)) : up[j];
  }
#pragma unroll
  for (int j = 0; j < DOWNS; j++)
    if (thread + j * THREADS < BN * 2) channels.next_down[thread + j * THREADS] = down[j];
  if (NEXT && thread < BN / 8) channels.next_flips[thread] = flips;
}

// The two tokens (rows g and g + 8 of an m16 tile) whose sums a thread holds. WHOLE: the tile lies inside the output.
struct Tokens {
  int code_sum[2];
  float step[2], offset[2];
  unsigned down[LOWRANK == 2 ? 8 : 4];  // an mma operand; the sums it will be made of
};

template <bool WHOLE>
__device__ __forceinline__ Tokens load_tokens(const Gemm& p, int row0, int lane) {
  Tokens t;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = row0 + (lane >> 2) + 8 * h;
    const bool real = WHOLE || row < p.m;
    t.code_sum[h] = real ? p.code_sum[row] : 0;
    t.step[h] = real ? p.step[row] : 0.f;
    t.offset[h] = OFFSET && real ? p.offset[row] : 0.f;
    if (LOWRANK == 1) {
      t.down[h] = real ? p.down[row * 8 + (lane & 3)] : 0;
      t.down[h + 2] = real ? p.down[row * 8 + (lane & 3) + 4] : 0;
    }
  }
  if (LOWRANK == 2)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned* const from = p.down + row0 * 16 + (i % 2 * 4 + i / 2 * 2 + (lane >> 2 & 1)) * 32 + (lane >> 3) * 8;
      const uint2 pair = WHOLE || row0 < p.m ? ((const uint2*)from)[lane & 3] : make_uint2(0, 0);
      t.down[2 * i] = pair.x, t.down[2 * i + 1] = pair.y;
    }
  return t;
}

__device__ __forceinline__ void mma_bf16(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                         unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What the next layer's down-projection makes of 16 tokens x 32 channels as a warp stores them: pairs[h][j] are channels
// 8 (lane % 4) + 2 j and the next of token lane / 4 + 8 h. The matrix is operand A, tokens are operand B as they lie.
__device__ __forceinline__ void project(float (&low)[2][4], const unsigned (&pairs)[2][4], const uint4* down) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
    const uint4 a = down[s * 32];
#pragma unroll
    for (int h = 0; h < 2; h++) mma_bf16(low[h], a.x, a.y, a.z, a.w, pairs[h][2 * s], pairs[h][2 * s + 1]);
  }
}

// Adds it to that of other channels: integers, so that their order does not matter. Each of a thread's sums goes beside
// those of the other threads, see `pack_sums`.
__device__ __forceinline__ void feed(const Gemm& p, const float (&low)[2][4], int row0, int lane) {
  if (row0 >= p.m) return;
  int* const to = p.next_sums + row0 * 16 + (lane & 3) * 8 + (lane >> 2);
#pragma unroll
  for (int i = 0; i < 8; i++)
    asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(to + i * 32), "r"(__float2int_rn(low[i / 4][i % 4]))
                 : "memory");
}

__device__ __forceinline__ bool inside(const Gemm& p, int row0, int rows, int n0, int channels) {
  return row0 + rows <= p.m && n0 + channels <= p.n && p.aligned;
}

// On its way before the tile is multiplied: the residual, one line of 128 bytes a thread.
__device__ __forceinline__ void fetch_residual(const Gemm& p, int row0, int n0, int lane) {
  const int row = row0 + (lane >> 2) + 8 * (lane & 1), n = n0 + 64 * (lane >> 1 & 1);
  if (EPILOGUE == 2 && row < p.m && n < p.n)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.residual + (long long)row * p.n + n));
}

// The residual of 16 tokens x `GROUPS` times 32 channels, in registers before the sums are there.
template <int GROUPS>
struct Residual {
  uint4 part[EPILOGUE == 2 ? GROUPS : 1][2];
  __device__ __forceinline__ void load(const Gemm& p, int row0, int n0, int lane) {
    if (EPILOGUE == 2)
#pragma unroll
      for (int group = 0; group < GROUPS; group++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          part[group][h] = *(const uint4*)(p.residual + (long long)(row0 + (lane >> 2) + 8 * h) * p.n + n0 +
                                           32 * group + 8 * (lane & 3));
  }
};

// Finish 16 tokens x `GROUPS` times 32 channels held by one warp; acc counts from MAGIC, less the code sum. Packed
// weights are permuted inside each group of 32 channels so that a thread's sums acc[j][2 h + e] are channels
// 8 (lane % 4) + 2 j + e of token h: eight neighbours, one 16-byte store, and no detour through shared memory. `col`
// counts channels inside the block's tile, which starts at n0. What the next layer's down-projection makes of them is
// added to `low`. WHOLE: all of it lies inside the output.
template <bool WHOLE, int GROUPS>
__device__ __forceinline__ void finish(const Gemm& p, const Channels& ch, const Tokens& t, const Residual<GROUPS>& more,
                                       const int (*acc)[4], float (&low)[2][4], int row0, int n0, int col, int lane) {
  const int c0 = col + 8 * (lane & 3), row = row0 + (lane >> 2);
  int n = n0 + c0;
  asm volatile("" : "+r"(n));  // or the compiler works out every column of the slow path ahead of the loop, and spills
  unsigned short* out[2];
  const unsigned short* gate[2];
  unsigned down[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    down[i] = LOWRANK == 2 ? bf16_pair((int)t.down[2 * i], (int)t.down[2 * i + 1]) : t.down[i];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    out[h] = p.out + (long long)(row + 8 * h) * p.n + n;
    if (EPILOGUE == 2) gate[h] = p.gate + (long long)((row + 8 * h) / p.gate_rows) * p.gate_stride + n;
  }
#pragma unroll
  for (int group = 0; group < GROUPS; group++) {
    asm volatile("" ::: "memory");  // one group after the other, or the registers run out
    float y[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int c = c0 + 32 * group + 2 * j + e;
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float dot = __int_as_float(acc[4 * group + j][2 * h + e]) - __int_as_float(MAGIC);
          float v = t.step[h] * (ch.alpha[c] * dot + ch.shifted_sum[c]) + ch.bias[c];
          if (OFFSET) v += t.offset[h] * ch.weight_sum[c];
          y[j][2 * h + e] = v;
        }
      }
    if (LOWRANK)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint2 b = ch.up[(col / 8 + 4 * group + j) * 32 + lane];
        mma_bf16(y[j], down[0], down[1], down[2], down[3], b.x, b.y);
      }
    unsigned pairs[2][4];
    uint4 flips;
    if (NEXT) flips = ch.next_flips[col / 8 + 4 * group + (lane & 3)];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint4 g;
      if (WHOLE && EPILOGUE == 2) g = *(const uint4*)(gate[h] + 32 * group);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float a = y[j][2 * h], b = y[j][2 * h + 1];
        if (EPILOGUE == 1) a = gelu_of_twice(a), b = gelu_of_twice(b);
        if (WHOLE && EPILOGUE == 2) {
          const unsigned r = (&more.part[group][h].x)[j];
          a = low_half((&g.x)[j]) * a + low_half(r);
          b = high_half((&g.x)[j]) * b + high_half(r);
        }
        if (!WHOLE && EPILOGUE == 2) {
          const int at = 32 * group + 2 * j;
          const unsigned short* r = p.residual + (long long)(row + 8 * h) * p.n + n + at;
          if (row + 8 * h < p.m && n + at < p.n) a = low_half(gate[h][at]) * a + low_half(r[0]);
          if (row + 8 * h < p.m && n + at + 1 < p.n) b = low_half(gate[h][at + 1]) * b + low_half(r[1]);
        }
        pairs[h][j] = bf16_pair(a, b);
        if (NEXT) pairs[h][j] ^= (&flips.x)[j];
      }
      if (WHOLE) {
        *(uint4*)(out[h] + 32 * group) = make_uint4(pairs[h][0], pairs[h][1], pairs[h][2], pairs[h][3]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
          if (row + 8 * h < p.m && n + 32 * group + i < p.n)
            out[h][32 * group + i] = (unsigned short)(pairs[h][i / 2] >> i % 2 * 16);
      }
    }
    if (NEXT == 2) project(low, pairs, ch.next_down + (col / 32 + group) * 64 + lane);
  }
}

// A block works through a contiguous run of tiles, ordered so that neighbours share their weights; the weights of one
// run of `tiles` token tiles stay in shared memory. The tiles are dealt out in turn to the block's workers or teams.
// Taking up new weights costs about as much as CHANGE tiles, and is counted as such when the work is shared out.
constexpr int CHANGE = 2;

struct Run {
  int column, first, tiles;
};

__device__ __forceinline__ bool next_run(const Gemm& p, int& at, Run& run) {
  const int length = (p.m + BM - 1) / BM + CHANGE, columns = (p.n + BN - 1) / BN;
  const long long all = (long long)length * columns;
  const int end = (int)(all * (blockIdx.x + 1) / gridDim.x);
  if (at < 0) at = (int)(all * blockIdx.x / gridDim.x);
  while (at < end) {
    run.column = at / length;
    const int from = max(at - run.column * length, CHANGE), to = min(end - run.column * length, length);
    run.first = from - CHANGE;
    run.tiles = to - from;
    at = (run.column + 1) * length;
    if (run.tiles > 0) return true;
  }
  return false;
}
