// Issue rate of one tensor-core instruction: every warp (or warpgroup) of a full grid repeats it on operands that never
// leave registers (mma.sync) or shared memory (wgmma). The `issue` function in front of this file holds the instruction.
//
// Macros: WARPGROUP = 0 mma.sync | 1 wgmma, THREADS = threads of a block, VALUE = accumulator type, ACCUMULATORS = of
// one instruction and thread, CHAINS = independent accumulators (mma.sync), N = columns of a wgmma tile.

struct Rates {
  unsigned long long* span;  // [blocks][2] clock cycles and nanoseconds that each block took
  VALUE* sink;               // [1] written never, but the compiler cannot know
  int turns, never;
};

__device__ __forceinline__ unsigned noise(unsigned x) {  // operands must toggle bits as real data do
  x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu;
#if NARROW
  return ((x ^ x >> 16) & 0x87878787u) | 0x38383838u;  // floating-point codes near one: no infinities
#else
  return x ^ x >> 16;
#endif
}

__device__ __forceinline__ unsigned long long nanoseconds() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

#if WARPGROUP
constexpr int STEPS = 4, A_BYTES = 64 * 32, B_BYTES = N * 32;  // operands of one instruction are 32 bytes deep

__device__ __forceinline__ unsigned long long descriptor(unsigned at, int rows) {
  // Without a swizzle: start, stride between the two 16-byte blocks along K, stride between groups of 8 rows (128 B).
  return (unsigned long long)(at >> 4) | (unsigned long long)rows << 16 | 8ull << 32;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) rates(const __grid_constant__ Rates p) {
#if WARPGROUP
  extern __shared__ __align__(128) unsigned memory[];
  for (int i = threadIdx.x; i < STEPS * (A_BYTES + B_BYTES) / 4; i += THREADS) memory[i] = noise(i);
  asm volatile("fence.proxy.async;" ::: "memory");
  const unsigned a = (unsigned)__cvta_generic_to_shared(memory), b = a + STEPS * A_BYTES;
  VALUE d[ACCUMULATORS] = {};
#else
  unsigned a[CHAINS][4], b[CHAINS][2];
  VALUE d[CHAINS][ACCUMULATORS] = {};
  for (int c = 0; c < CHAINS; c++) {
    for (int i = 0; i < 4; i++) a[c][i] = noise(threadIdx.x * 64 + c * 6 + i);
    for (int i = 0; i < 2; i++) b[c][i] = noise(threadIdx.x * 64 + c * 6 + 4 + i);
  }
#endif
  __syncthreads();
  const unsigned long long clock = clock64(), time = nanoseconds();
  for (int turn = 0; turn < p.turns; turn++) {
#if WARPGROUP
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int s = 0; s < STEPS; s++) issue(d, descriptor(a + s * A_BYTES, 64), descriptor(b + s * B_BYTES, N));
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#else
#pragma unroll
    for (int c = 0; c < CHAINS; c++) issue(d[c], a[c], b[c]);
#endif
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    p.span[2 * blockIdx.x] = clock64() - clock;
    p.span[2 * blockIdx.x + 1] = nanoseconds() - time;
  }
  if (p.never) {
    VALUE sum = 0;
#if WARPGROUP
    for (int i = 0; i < ACCUMULATORS; i++) sum += d[i];
#else
    for (int c = 0; c < CHAINS; c++)
      for (int i = 0; i < ACCUMULATORS; i++) sum += d[c][i];
#endif
    *p.sink = sum;
  }
}
