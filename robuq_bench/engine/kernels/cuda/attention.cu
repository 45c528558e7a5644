// Softmax attention of short sequences, bf16 in and out, float32 sums: for the few images where latency rules.
//
// A block takes 64 queries of one head; all its keys and values lie in shared memory. Four teams of PARTS warps have 16
// queries each, each warp of a team a share of the keys, so that a thread's scores fit into registers and no maximum is
// corrected but once, when the shares are put together. Rows in shared memory are an odd number of 16-byte chunks long,
// so that eight of them never meet in a bank.
//
// Macros: HEADS, DIM = channels of a head (a multiple of 8), TOKENS = of an image (a multiple of 64), PARTS = 2 | 4.

struct Attention {
  const unsigned short* qkv;  // [images * TOKENS][3][HEADS][DIM] bf16
  unsigned short* out;        // [images * TOKENS][HEADS][DIM] bf16
  float scale;                // log2(e) / sqrt(DIM)
};

constexpr int CHUNKS = DIM / 8, PITCH = (CHUNKS | 1) * 16, SHARE = TOKENS / PARTS, TILES = SHARE / 8, ROW = HEADS * DIM;
constexpr int THREADS = PARTS * 128;
static_assert(DIM % 8 == 0 && TOKENS % 64 == 0, "shape");

template <bool TRANSPOSED>
__device__ __forceinline__ void load4(unsigned (&r)[4], unsigned at) {
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}

__device__ __forceinline__ void multiply16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply8(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b));
}

// `rows` rows of 16-byte chunks into shared memory, by all threads.
__device__ __forceinline__ void fetch(unsigned to, const unsigned short* from, int rows) {
  for (int i = threadIdx.x; i < rows * CHUNKS; i += THREADS)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i / CHUNKS * PITCH + i % CHUNKS * 16),
                 "l"(from + (long long)(i / CHUNKS) * 3 * ROW + i % CHUNKS * 8) : "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS) attention(const __grid_constant__ Attention p) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, team = warp & 3, part = warp >> 2;
  const int tile = blockIdx.x % (TOKENS / 64), head = blockIdx.x / (TOKENS / 64) % HEADS;
  const long long first = (long long)(blockIdx.x / (TOKENS / 64) / HEADS) * TOKENS;
  const unsigned queries = (unsigned)__cvta_generic_to_shared(memory), keys = queries + 64 * PITCH;
  const unsigned values = keys + TOKENS * PITCH, mine = queries + team * 16 * PITCH;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
  const unsigned short* from = p.qkv + first * 3 * ROW + head * DIM;
  fetch(queries, from + tile * 64 * 3 * ROW, 64);
  fetch(keys, from + ROW, TOKENS);
  asm volatile("cp.async.commit_group;" ::: "memory");
  fetch(values, from + 2 * ROW, TOKENS);
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 1;" ::: "memory");
  __syncthreads();

  unsigned q[CHUNKS / 2 + 1][4] = {};
#pragma unroll
  for (int c = 0; c < CHUNKS; c += 2)  // the last chunk of an odd number is loaded twice; its other half is not used
    load4<false>(q[c / 2], mine + (lane & 15) * PITCH + min(c + (lane >> 4), CHUNKS - 1) * 16);
  float score[TILES][4] = {}, most[2] = {-1e30f, -1e30f};
#pragma unroll
  for (int j = 0; j < TILES; j++) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c += 4) {
      unsigned k[4];
      load4<false>(k, keys + (part * SHARE + 8 * j + (lane & 7)) * PITCH + min(c + (lane >> 3), CHUNKS - 1) * 16);
#pragma unroll
      for (int i = 0; i < 4 && c + i < CHUNKS; i += 2)
        if (c + i + 1 < CHUNKS)
          multiply16(score[j], q[(c + i) / 2], k[i], k[i + 1]);
        else
          multiply8(score[j], q[(c + i) / 2][0], q[(c + i) / 2][1], k[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], score[j][i]);
  }
  float sum[2] = {};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
    most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2)) * p.scale;
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();

  float result[CHUNKS][4] = {};
#pragma unroll
  for (int j = 0; j < TILES; j += 2) {
    unsigned weight[4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float a = power_of_two(score[j + i][2 * h] * p.scale - most[h]);
        const float b = power_of_two(score[j + i][2 * h + 1] * p.scale - most[h]);
        sum[h] += a + b;
        weight[2 * i + h] = bf16_pair(a, b);
      }
    const unsigned row = values + (part * SHARE + 8 * j + (lane & 15)) * PITCH;
#pragma unroll
    for (int c = 0; c < CHUNKS; c += 2) {
      unsigned v[4];
      load4<true>(v, row + min(c + (lane >> 4), CHUNKS - 1) * 16);
      multiply16(result[c], weight, v[0], v[1]);
      if (c + 1 < CHUNKS) multiply16(result[c + 1], weight, v[2], v[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
  }

  __syncthreads();  // keys are not needed any more: what the other parts have goes there, [part][value][128 threads]
  constexpr int VALUES = CHUNKS * 4 + 4;
  float* const shares = (float*)(memory + 64 * PITCH) + team * 32 + lane;
  if (part) {
    float* const to = shares + (part - 1) * VALUES * 128;
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; i++) to[i * 128] = result[i / 4][i % 4];
#pragma unroll
    for (int h = 0; h < 2; h++) to[(CHUNKS * 4 + h) * 128] = most[h], to[(CHUNKS * 4 + 2 + h) * 128] = sum[h];
  }
  __syncthreads();
  if (part) return;
#pragma unroll
  for (int other = 0; other < PARTS - 1; other++) {
    const float* const theirs = shares + other * VALUES * 128;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float top = fmaxf(most[h], theirs[(CHUNKS * 4 + h) * 128]);
      const float own = power_of_two(most[h] - top), more = power_of_two(theirs[(CHUNKS * 4 + h) * 128] - top);
      most[h] = top;
      sum[h] = own * sum[h] + more * theirs[(CHUNKS * 4 + 2 + h) * 128];
#pragma unroll
      for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          result[c][2 * h + e] = own * result[c][2 * h + e] + more * theirs[(4 * c + 2 * h + e) * 128];
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float whole = 1.f / sum[h];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(mine + (lane / 4 + 8 * h) * PITCH + c * 16 + lane % 4 * 4),
                   "r"(bf16_pair(whole * result[c][2 * h], whole * result[c][2 * h + 1])) : "memory");
  }
  __syncwarp();
  unsigned short* const to = p.out + (first + tile * 64 + team * 16) * ROW + head * DIM;
  for (int i = lane; i < 16 * CHUNKS; i += 32)
    *(uint4*)(to + i / CHUNKS * ROW + i % CHUNKS * 8) =
        *(const uint4*)(memory + (team * 16 + i / CHUNKS) * PITCH + i % CHUNKS * 16);
}
