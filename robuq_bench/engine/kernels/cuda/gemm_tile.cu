// Bit-serial GEMM for Hopper when there are few tokens: one tile a block, everything it needs loaded at once. BM = 64.
//
// With about one tile a multiprocessor, latency is all. The weights, which no kernel writes, are on their way before
// the last kernel has ended; blocks are small, so that those of two kernels fit side by side; and the tile is shared
// out among the warpgroups, NSPLIT along its channels and KSPLIT along K (sums are then added through shared memory).
// A warpgroup's share of K comes in LOADS pieces, and the first plane is multiplied as they arrive.

constexpr int WIDTH = BN / NSPLIT, PART = UNITS / KSPLIT;     // channels and units of one warpgroup
constexpr int LOAD = PART / LOADS, FIRST = KSPLIT * LOADS;    // units of a piece; pieces of a plane
constexpr int SLAB = BN % 128 ? 64 : 128;                     // channels that lie together in shared memory
constexpr int WEIGHTS = UNITS * 2 * BN * 16, EXCHANGE = KSPLIT > 1 ? KSPLIT * BN * 256 : 0;
constexpr int GROUPS = KSPLIT > 1 ? 1 : WIDTH / 32;           // of 32 channels that a warpgroup finishes
static_assert(BM == 64 && UNITS % FIRST == 0 && SLAB % WIDTH == 0 && (BN == 64 || BN % 128 == 0), "tile");
static_assert(WORKERS == NSPLIT * KSPLIT && (KSPLIT == 1 || BN / 32 <= WORKERS), "workers");

extern "C" __global__ void __launch_bounds__(WORKERS * 128, 1) gemm(const __grid_constant__ Gemm p) {
  extern __shared__ __align__(128) unsigned char memory[];
  // Each piece of the weights and the first plane; the other planes of each part of K.
  __shared__ unsigned long long barriers[FIRST + 3 * KSPLIT];
  const int lane = threadIdx.x & 31, worker = uniform(threadIdx.x >> 7), thread = threadIdx.x & 127;
  const int k_part = worker % KSPLIT, n_part = worker / KSPLIT;
  const int m_tiles = (p.m + BM - 1) / BM, m_tile = blockIdx.x % m_tiles, n0 = blockIdx.x / m_tiles * BN;
  const unsigned weights = shared_address(memory), activations = weights + WEIGHTS;
  Channels& channels = *(Channels*)(memory + max(WEIGHTS + p.bits * UNITS * PIECE, EXCHANGE));

  if (threadIdx.x < FIRST + 3 * KSPLIT)
    start_barrier(shared_address(barriers + threadIdx.x), threadIdx.x < FIRST ? 2 : 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  let_the_next_kernel_start();
  if (threadIdx.x < 32) {  // slabs of shared memory [BN / SLAB][UNITS][P, Q][SLAB][16 B]
    for (int i = lane; i < FIRST; i += 32) expect(shared_address(barriers + i), LOAD * 2 * BN * 16);
    __syncwarp();
    const uint4* from = p.weights + (long long)(n0 / 128) * UNITS * 256 + n0 % 128;
    if (SLAB == 128)
      for (int i = lane; i < BN / 128 * FIRST; i += 32) {
        const int slab = i / FIRST, piece = i % FIRST, real = min(slab, (p.n - n0 - 1) / 128);
        bulk_copy(weights + i * LOAD * 4096, from + (real * FIRST + piece) * LOAD * 256, LOAD * 4096,
                  shared_address(barriers + piece));
      }
    else
      for (int i = lane; i < UNITS * 2; i += 32)
        bulk_copy(weights + i * 1024, from + i * 128, 1024, shared_address(barriers + i / (2 * LOAD)));
  }
  load_channels(p, channels, n0);
  wait_for_the_kernel_before();
  if (threadIdx.x == 0) {
    auto load = [&](unsigned barrier, int unit, int units) {
      expect(barrier, units * PIECE);
      bulk_copy(activations + unit * PIECE, p.activations + ((long long)m_tile * p.bits * UNITS + unit) * 64,
                units * PIECE, barrier);
    };
    for (int i = 0; i < FIRST; i++) load(shared_address(barriers + i), (p.bits - 1) * UNITS + i * LOAD, LOAD);
    for (int plane = p.bits - 2; plane >= 0; plane--)
      for (int i = 0; i < KSPLIT; i++)
        load(shared_address(barriers + FIRST + plane * KSPLIT + i), plane * UNITS + i * PART, PART);
  }
  const int col = KSPLIT == 1 ? n_part * WIDTH : worker * 32, row0 = m_tile * BM + (thread >> 5) * 16;
  const bool whole = inside(p, m_tile * BM, BM, n0 + col, GROUPS * 32), finishes = KSPLIT == 1 || worker < BN / 32;
  const Tokens tokens = whole ? load_tokens<true>(p, row0, lane) : load_tokens<false>(p, row0, lane);
  Residual<GROUPS> residual;
  if (whole && finishes) residual.load(p, row0, n0 + col, lane);

  int acc[WIDTH / 8][4] = {};
  for (int plane = p.bits - 1; plane >= 0; plane--) {
    const bool first = plane == p.bits - 1;
    if (!first) wait(shared_address(barriers + FIRST + plane * KSPLIT + k_part), 0);
    const int slab = n_part * WIDTH / SLAB, row = n_part * WIDTH % SLAB;
    const unsigned long long a = descriptor(uniform(activations + (plane * UNITS + k_part * PART) * PIECE), 0);
    const unsigned long long w =
        descriptor(uniform(weights + ((slab * UNITS + k_part * PART) * 2 * SLAB + row) * 16), SLAB * 16);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      if (first) wait(shared_address(barriers + k_part * LOADS + i), 0);
#pragma unroll
      for (int u = i * LOAD; u < (i + 1) * LOAD; u++) wgmma(acc, a + u * (PIECE >> 4), w + u * (2 * SLAB));
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) asm volatile("" : "+r"(acc[i / 4][i % 4]));  // nothing moves above the wait
    if (plane)
#pragma unroll
      for (int i = 0; i < WIDTH / 2; i++) acc[i / 4][i % 4] *= 2;
  }
  __syncthreads();  // the channels are there, and every warpgroup has read its operands

  int sums[GROUPS * 4][4];
  if (KSPLIT == 1) {
#pragma unroll
    for (int i = 0; i < GROUPS * 16; i++) sums[i / 4][i % 4] = acc[i / 4][i % 4];
  } else {
    int4* exchange = (int4*)memory;  // [part of K][8 channels][128 threads]
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++)
      exchange[(k_part * (BN / 8) + n_part * (WIDTH / 8) + i) * 128 + thread] = *(int4*)acc[i];
    __syncthreads();
    if (!finishes) return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int4 sum = make_int4(0, 0, 0, 0);
#pragma unroll
      for (int part = 0; part < KSPLIT; part++) {
        const int4 more = exchange[(part * (BN / 8) + worker * 4 + j) * 128 + thread];
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
      }
      *(int4*)sums[j] = sum;
    }
  }
#pragma unroll
  for (int i = 0; i < GROUPS * 16; i++) sums[i / 4][i % 4] += MAGIC - tokens.code_sum[i % 4 / 2];
  float low[2][4] = {};
  if (whole)
    finish<true, GROUPS>(p, channels, tokens, residual, sums, low, row0, n0, col, lane);
  else
    finish<false, GROUPS>(p, channels, tokens, residual, sums, low, row0, n0, col, lane);
  if (NEXT != 2) return;
  if (KSPLIT == 1 && NSPLIT > 1) {  // first among the warpgroups: half the traffic to L2, or less
    float(*exchange)[8][128] = (float(*)[8][128])memory;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (n_part) exchange[n_part][i][thread] = low[i / 4][i % 4];
    __syncthreads();
    if (n_part) return;
    for (int part = 1; part < NSPLIT; part++)
#pragma unroll
      for (int i = 0; i < 8; i++) low[i / 4][i % 4] += exchange[part][i][thread];
  }
  feed(p, low, row0, lane);
}
