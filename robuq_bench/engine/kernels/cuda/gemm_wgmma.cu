// Bit-serial GEMM for Hopper: wgmma b1 straight from shared memory, bulk copies, one mbarrier a stage. BM = 64.
//
// The plan is gemm_mma.cu's: stationary weights, streamed activation planes, Horner. Each worker is one warpgroup.
// Without a swizzle, a wgmma operand is made of blocks of 8 rows x 16 bytes at two strides; giving activations a stride
// of zero along K makes the unit read the same 128 bits twice, once against P and once against Q, without a copy.

static_assert(BM == 64 && UNITS % CHUNK == 0, "tile");
constexpr int STAGE = CHUNK * PIECE, WEIGHTS = UNITS * 2 * BN * 16, CHUNKS = UNITS / CHUNK;

__device__ __forceinline__ unsigned long long descriptor(unsigned at, unsigned along_k) {
  // Start, stride between the two 16-byte blocks along K, stride between groups of 8 rows: all in 16-byte steps.
  return (unsigned long long)(at >> 4) | (unsigned long long)(along_k >> 4) << 16 | 8ull << 32;
}

__device__ __forceinline__ void bulk_copy(unsigned to, const void* from, int bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ __forceinline__ void expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\nbra again;\n"
      "over:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

// Between planes the accumulators are doubled. The code sum is taken off on the way to the last plane, where it costs
// nothing: 2 acc - code_sum is one instruction.
__device__ __forceinline__ void double_up(int (&acc)[BN / 8][4], const Tokens& t, int done_plane) {
  const int less[2] = {done_plane == 1 ? t.code_sum[0] : 0, done_plane == 1 ? t.code_sum[1] : 0};
#pragma unroll
  for (int i = 0; i < BN / 2; i++) acc[i / 4][i % 4] = 2 * acc[i / 4][i % 4] - less[i % 4 / 2];
}

extern "C" __global__ void __launch_bounds__(WORKERS * 128, 1) gemm(const __grid_constant__ Gemm p) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ unsigned long long barriers[WORKERS * STAGES + CHUNKS];
  Channels& channels = *(Channels*)(memory + WEIGHTS + WORKERS * STAGES * STAGE);
  const int lane = threadIdx.x & 31, worker = threadIdx.x >> 7, thread = threadIdx.x & 127;
  const unsigned weights = shared_address(memory), ring = weights + WEIGHTS + worker * STAGES * STAGE;
  const unsigned filled = shared_address(barriers + worker * STAGES);
  const unsigned weights_in = shared_address(barriers + WORKERS * STAGES);
  const int n_pieces = (p.n + 63) / 64;

  if (threadIdx.x < WORKERS * STAGES + CHUNKS)
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barriers + threadIdx.x)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");

  follow_on();
  int at = -1, runs = 0, slot = 0, parity = 0;
  for (Run run; next_run(p, at, run); runs++) {
    const int n0 = run.n_tile * BN;
    __syncthreads();  // the barriers are ready, and every worker has finished with the last run's weights
    if (threadIdx.x < 32) {
      for (int i = lane; i < CHUNKS; i += 32) expect(weights_in + i * 8, CHUNK * 2 * BN * 16);
      __syncwarp();
      for (int i = lane; i < UNITS * 2 * (BN / 64); i += 32) {
        const int part = i / (BN / 64), piece = i % (BN / 64);
        const long long from = (long long)min(n0 / 64 + piece, n_pieces - 1) * UNITS * 2 + part;
        bulk_copy(weights + (part * BN + piece * 64) * 16, p.weights + from * 64, PIECE,
                  weights_in + part / (2 * CHUNK) * 8);
      }
    }

    Cursor ahead{worker, p.bits - 1, 0};
    int fill = slot;
    auto load = [&] {  // by one thread of the worker
      if (ahead.tile < run.tiles) {
        const long long from = (long long)(run.first + ahead.tile) * p.bits + ahead.plane;
        expect(filled + fill * 8, STAGE);
        bulk_copy(ring + fill * STAGE, p.activations + (from * UNITS + ahead.chunk * CHUNK) * 64, STAGE,
                  filled + fill * 8);
        fill = fill + 1 == STAGES ? 0 : fill + 1;
        ahead.advance(p.bits);
      }
    };
    if (thread == 0)
#pragma unroll
      for (int s = 0; s < STAGES; s++) load();
    load_channels(p, channels, n0, threadIdx.x, WORKERS * 128);
    __syncthreads();

    for (int tile = worker; tile < run.tiles; tile += WORKERS) {
      const int row0 = (run.first + tile) * BM + (thread >> 5) * 16;
      const bool whole = inside(p, (run.first + tile) * BM, BM, n0);
      const Tokens tokens = whole ? load_tokens<true>(p, row0, lane) : load_tokens<false>(p, row0, lane);
      fetch_residual(p, row0, n0, lane);
      int acc[BN / 8][4] = {};
      for (int plane = p.bits - 1; plane >= 0; plane--) {
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
          wait(weights_in + chunk * 8, runs & 1);
          wait(filled + slot * 8, parity);
          const unsigned long long a = descriptor(ring + slot * STAGE, 0);
          const unsigned long long w = descriptor(weights + chunk * CHUNK * 2 * BN * 16, BN * 16);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int u = 0; u < CHUNK; u++) wgmma(acc, a + u * (PIECE >> 4), w + u * (2 * BN));
          asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
          worker_barrier(worker);  // all four warps have read the stage
          if (thread == 0) load();
          if (++slot == STAGES) slot = 0, parity ^= 1;
        }
#pragma unroll
        for (int i = 0; i < BN / 2; i++) asm volatile("" : "+r"(acc[i / 4][i % 4]));  // nothing moves above the wait
        if (plane) double_up(acc, tokens, plane);
      }
      if (p.bits == 1)  // there was no doubling
#pragma unroll
        for (int i = 0; i < BN / 2; i++) acc[i / 4][i % 4] -= tokens.code_sum[i % 4 / 2];
      if (whole)
        finish<true, BN / 32>(p, channels, tokens, acc, row0, n0, 0, lane);
      else
        finish<false, BN / 32>(p, channels, tokens, acc, row0, n0, 0, lane);
    }
  }
}
