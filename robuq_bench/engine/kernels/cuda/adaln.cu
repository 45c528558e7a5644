// The adaLN linears of all blocks at once: a few conditioning vectors, ternary weights read once at memory speed.
//
// `quantise` rotates, quantises and projects down every vector for every layer (each layer has signs of its own).
// `product` streams the weights in records of 64 channels and multiplies them on the tensor cores, 8 vectors a tile:
// P and Q of 128 input channels lie side by side along K against the same activation bits twice, as in the GEMM.
//
// Macros: R, BLOCKS (the rotation, as in rowwise.cu), BITS, RANK, CENTER = 0 | 1, SOURCE = 0 bf16 | 1 float,
// PARTS = groups of four warps in a thread block of `product`, STAGES = records in flight for each of them.

constexpr int C = 32 * BLOCKS, N = R * C, UNITS = N / 128;
constexpr int WARPS = (R + 3) / 4 * BLOCKS;                // of quantise: four rows of 32 columns each
constexpr int RECORD = UNITS * 2048 + 768 + RANK * 2048;   // bytes, see adaln.py
static_assert(N % 128 == 0, "width");

struct Adaln {
  const void* conditioning;        // [batch][N]
  const unsigned* signs;           // [layers][N / 32] bit 1: the channel is negated
  const float* mix;                // [R][R]
  const uint4* down;               // [layers][N][16] bf16
  const unsigned char* records;    // [layers][channels / 64][RECORD]
  unsigned* planes;                // [layers][batch / 8][UNITS][8 vectors][4 words][BITS, in 4]
  float4* vectors;                 // [layers][batch up to 8] step, offset, sum of the codes (an int), nothing
  unsigned* low;                   // [layers][batch up to 8][8] pairs of bf16
  unsigned short* out;             // [layers][batch][channels] bf16
  int layers, batch, channels;
  float norm, cell, rounding, shift;
};

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

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

template <class T>
__device__ __forceinline__ T block_sum(T v, T* scratch) {
#pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int i = 0; i < WARPS; i++) v += scratch[i];
  return v;
}

// One thread block quantises one vector for one layer. A thread ends with the channels (4 q + i) C + 32 block + lane.
extern "C" __global__ void __launch_bounds__(WARPS * 32) quantise(const __grid_constant__ Adaln p) {
  __shared__ float turned[R][C], mix[R * R], sums[WARPS * 16];
  __shared__ int counts[WARPS];
  const int layer = blockIdx.x / p.batch, vector = blockIdx.x % p.batch;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = warp / BLOCKS, block = warp % BLOCKS;

  let_the_next_kernel_start();
  for (int i = threadIdx.x; i < R * R; i += WARPS * 32) mix[i] = p.mix[i];
  wait_for_the_kernel_before();
  for (int row = warp; row < R; row += WARPS) {  // x H_C, one row of X at a time
    float v[BLOCKS];
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
      const int word = row * BLOCKS + b, at = vector * N + word * 32 + lane;
      v[b] = SOURCE ? ((const float*)p.conditioning)[at] : low_half(((const unsigned short*)p.conditioning)[at]);
      if (p.signs[layer * (N / 32) + word] >> lane & 1) v[b] = -v[b];
    }
#pragma unroll
    for (int d = 1; d < BLOCKS; d *= 2)
#pragma unroll
      for (int b = 0; b < BLOCKS; b++)
        if (!(b & d)) {
          const float sum = v[b] + v[b + d];
          v[b + d] = v[b] - v[b + d], v[b] = sum;
        }
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const float other = __shfl_xor_sync(~0u, v[b], d);
        v[b] = lane & d ? other - v[b] : v[b] + other;
      }
      turned[row][32 * b + lane] = v[b];
    }
  }
  __syncthreads();

  float y[4] = {};
  for (int r = 0; r < R; r++) {  // mix^T (x H_C)
    const float x = turned[r][32 * block + lane];
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (R % 4 == 0 || 4 * q + i < R) y[i] += mix[r * R + 4 * q + i] * x;
  }
  float total = 0, offset = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) y[i] *= p.norm, total += y[i];
  if (CENTER) offset = block_sum(total, sums) / N;
  float magnitude = 0;
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (R % 4 == 0 || 4 * q + i < R) magnitude += fabsf(y[i] - offset);
  const float step = fmaxf(block_sum(magnitude, sums) / N * p.cell, 1e-12f);

  const int tiles = (p.batch + 7) / 8, slot = layer * tiles * 8 + vector;
  int count = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = 4 * q + i, word = row * BLOCKS + block;
    if (R % 4 && row >= R) break;
    const int code = min(max((int)floorf((y[i] - offset) / step + p.rounding), 0), (1 << BITS) - 1);
    count += code;
    unsigned* to = p.planes + (((layer * tiles + vector / 8) * UNITS + word / 4) * 32 + vector % 8 * 4 + word % 4) * 4;
#pragma unroll
    for (int plane = 0; plane < BITS; plane++) {
      const unsigned bits = __ballot_sync(~0u, code >> plane & 1);
      if (lane == plane) to[plane] = bits;
    }
  }
  count = block_sum(count, counts);
  if (threadIdx.x == 0) p.vectors[slot] = make_float4(step, offset, __int_as_float(count), 0.f);

  if (RANK) {
    float sum[16] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = 4 * q + i;
      if (R % 4 && row >= R) break;
      const uint4* from = p.down + ((long long)layer * N + row * C + 32 * block + lane) * 2;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 factor = from[half];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          sum[8 * half + 2 * j] += low_half((&factor.x)[j]) * y[i];
          sum[8 * half + 2 * j + 1] += high_half((&factor.x)[j]) * y[i];
        }
      }
    }
    // Sixteen sums over 32 lanes: lanes halve the sums they keep at each exchange.
#pragma unroll
    for (int d = 8; d; d /= 2)
#pragma unroll
      for (int j = 0; j < d; j++) {
        const float kept = lane & d ? sum[j + d] : sum[j], given = lane & d ? sum[j] : sum[j + d];
        sum[j] = kept + __shfl_xor_sync(~0u, given, d);
      }
    sum[0] += __shfl_xor_sync(~0u, sum[0], 16);
    __syncthreads();
    if (lane < 16) sums[warp * 16 + lane] = sum[0];
    __syncthreads();
    if (threadIdx.x < 8) {
      float pair[2] = {};
      for (int w = 0; w < WARPS; w++)
        for (int e = 0; e < 2; e++) pair[e] += sums[w * 16 + 2 * threadIdx.x + e];
      p.low[slot * 8 + threadIdx.x] = bf16_pair(pair[0], pair[1]);
    }
  }
}

__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void multiply_bits(int (&d)[4], const unsigned (&a)[4], unsigned b) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%8}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}

// Each part of a block (four warps of 16 channels) has a ring of its own and takes every PARTS-th record.
extern "C" __global__ void __launch_bounds__(PARTS * 128, 1) product(const __grid_constant__ Adaln p) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ unsigned long long barriers[PARTS * STAGES];
  const int lane = threadIdx.x & 31, part = threadIdx.x >> 7, thread = threadIdx.x & 127, g = lane >> 2, t = lane & 3;
  const int row = (thread >> 5) * 16, tiles = (p.batch + 7) / 8, columns = p.channels / 64;
  const unsigned ring = shared_address(memory) + part * STAGES * RECORD;
  const unsigned filled = shared_address(barriers + part * STAGES);
  const long long all = (long long)p.layers * columns;
  const int end = (int)(all * (blockIdx.x + 1) / gridDim.x);
  int ahead = (int)(all * blockIdx.x / gridDim.x) + part;

  auto load = [&](int slot) {
#if __CUDA_ARCH__ >= 900
    if (thread == 0 && ahead < end) {
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(filled + slot * 8), "n"(RECORD)
                   : "memory");
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       ring + slot * RECORD), "l"(p.records + (long long)ahead * RECORD), "n"(RECORD),
                   "r"(filled + slot * 8) : "memory");
    }
#else
    if (ahead < end)
      for (int i = thread * 16; i < RECORD; i += 2048)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(ring + slot * RECORD + i),
                     "l"(p.records + (long long)ahead * RECORD + i) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    ahead += PARTS;
  };
  auto part_barrier = [&] { asm volatile("bar.sync %0, 128;" ::"r"(part + 1) : "memory"); };

  const int first = ahead;
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x < PARTS * STAGES)
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barriers + threadIdx.x)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
#endif
#pragma unroll
  for (int s = 0; s < STAGES; s++) load(s);
  wait_for_the_kernel_before();
  let_the_next_kernel_start();

  int slot = 0, parity = 0;
  for (int at = first; at < end; at += PARTS) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\n"
                 "bra again;\nover:\n}" ::"r"(filled + slot * 8), "r"(parity) : "memory");
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
    part_barrier();
#endif
    const unsigned char* record = memory + (part * STAGES + slot) * RECORD;
    unsigned a[UNITS][4], up[4] = {};
#pragma unroll
    for (int u = 0; u < UNITS; u++)
      ldmatrix4(a[u], shared_address(record) + u * 2048 + (lane >> 4) * 1024 + (row + (lane & 15)) * 16);
    const float2* constants = (const float2*)(record + UNITS * 2048) + row / 2 + g;
    const float2 alpha = constants[0], weight_sum = constants[32], bias = constants[64];
    if (RANK)
#pragma unroll
      for (int i = 0; i < 4; i++)
        up[i] = ((const unsigned*)(record + UNITS * 2048 + 768))[(row + g + i % 2 * 8) * 8 + t + i / 2 * 4];
    part_barrier();  // everything is in registers
    load(slot);
    if (++slot == STAGES) slot = 0, parity ^= 1;

    const int layer = at / columns, channel = at % columns * 64 + row + 2 * g;
    for (int tile = 0; tile < tiles; tile++) {
      const int base = layer * tiles + tile;
      const uint4* planes = (const uint4*)p.planes + (long long)base * UNITS * 32 + lane;
      int sums[BITS][4] = {};
#pragma unroll
      for (int u = 0; u < UNITS; u++) {
        const uint4 b = planes[u * 32];
#pragma unroll
        for (int plane = 0; plane < BITS; plane++) multiply_bits(sums[plane], a[u], (&b.x)[plane]);
      }
      float y[4] = {};
      if (RANK) {
        const unsigned* low = p.low + (base * 8 + g) * 8 + t;
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3])
            : "r"(up[0]), "r"(up[1]), "r"(up[2]), "r"(up[3]), "r"(low[0]), "r"(low[4]));
      }
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int vector = tile * 8 + 2 * t + e;
        if (vector >= p.batch) break;
        const float4 token = p.vectors[base * 8 + 2 * t + e];
        float result[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {  // channels 2 g and 2 g + 1
          int dot = -__float_as_int(token.z);
#pragma unroll
          for (int plane = 0; plane < BITS; plane++) dot += sums[plane][2 * h + e] << plane;
          const float sum = h ? weight_sum.y : weight_sum.x;
          const float levels = token.x * ((float)dot + p.shift * sum) + (CENTER ? token.y * sum : 0.f);
          result[h] = (h ? alpha.y : alpha.x) * levels + (h ? bias.y : bias.x) + y[2 * h + e];
        }
        *(unsigned*)(p.out + ((long long)layer * p.batch + vector) * p.channels + channel) =
            bf16_pair(result[0], result[1]);
      }
    }
  }
}
