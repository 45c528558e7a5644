// Bit-serial GEMM for Hopper: wgmma b1 straight from shared memory, bulk copies, mbarriers. BM = 64.
//
// The plan is gemm_mma.cu's: stationary weights, streamed activation planes, Horner. Each worker is one warpgroup with
// 128 channels; SIDE of them stand side by side and share one stream of tokens (a team). The warps of one more
// warpgroup feed the teams, through rings of STAGES stages of CHUNK units. With TURNS = 1 teams multiply one after the
// other, each from its first product's start until its last one is on its way, and finish their tiles meanwhile.
// Without a swizzle, a wgmma operand is made of blocks of 8 rows x 16 bytes at two strides; giving activations a stride
// of zero along K makes the unit read the same 128 bits twice, once against P and once against Q, without a copy.

constexpr int WIDTH = 128, TEAMS = WORKERS / SIDE, CHUNKS = UNITS / CHUNK;
constexpr int STAGE = CHUNK * PIECE, SLICE = CHUNK * 2 * WIDTH * 16, WEIGHTS = SIDE * CHUNKS * SLICE;
static_assert(BM == 64 && BN == SIDE * WIDTH && UNITS % CHUNK == 0 && WORKERS % SIDE == 0, "tile");

// Registers a thread: the feeders keep FEW, the workers get MANY.
constexpr int ALL = 512 / (WORKERS + 1) / 8 * 8 * (WORKERS + 1), FEW = 32, MANY = (ALL - FEW) / WORKERS / 8 * 8;

__device__ __forceinline__ void everyone() { asm volatile("bar.sync 0;" ::: "memory"); }

// A worker's turn comes when the same side of the team before it has given it.
__device__ __forceinline__ void take_turn(int team, int side) {
  if (TURNS) asm volatile("bar.sync %0, 256;" ::"r"(1 + team * SIDE + side) : "memory");
}

__device__ __forceinline__ void give_turn(int team, int side) {
  if (TURNS) asm volatile("bar.arrive %0, 256;" ::"r"(1 + (team + 1) % TEAMS * SIDE + side) : "memory");
}

extern "C" __global__ void __launch_bounds__(WORKERS * 128 + 128, 1) gemm(const __grid_constant__ Gemm p) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ unsigned long long barriers[2 * TEAMS * STAGES + CHUNKS];
  const unsigned weights = shared_address(memory), rings = weights + WEIGHTS;
  const unsigned filled = shared_address(barriers), empty = filled + TEAMS * STAGES * 8;
  const unsigned weights_in = empty + TEAMS * STAGES * 8;

  if (threadIdx.x < TEAMS * STAGES) {
    start_barrier(filled + threadIdx.x * 8, 1);
    start_barrier(empty + threadIdx.x * 8, 4 * SIDE);
  }
  if (threadIdx.x < CHUNKS) start_barrier(weights_in + threadIdx.x * 8, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  let_the_next_kernel_start();

  if (threadIdx.x >= WORKERS * 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
    const int t = threadIdx.x / 32 - WORKERS * 4;  // one thread of a warp for each team
    int at = -1, slot = 0, parity = 0;
    bool opening = true;
    for (Run run; next_run(p, at, run); opening = false) {
      everyone();  // the barriers are ready, and every worker has finished with the last run's weights
      if (t < TEAMS && threadIdx.x % 32 == 0) {
        if (t == 0) {
          const int sides = min(SIDE, (p.n - run.column * BN + WIDTH - 1) / WIDTH);
          for (int chunk = 0; chunk < CHUNKS; chunk++) {
            expect(weights_in + chunk * 8, sides * SLICE);
            for (int s = 0; s < sides; s++)
              bulk_copy(weights + (s * CHUNKS + chunk) * SLICE,
                        (const char*)p.weights + ((long long)(run.column * SIDE + s) * CHUNKS + chunk) * SLICE, SLICE,
                        weights_in + chunk * 8);
          }
        }
        if (opening) wait_for_the_kernel_before();
        for (int tile = t; tile < run.tiles; tile += TEAMS)
          for (int plane = p.bits - 1; plane >= 0; plane--)
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
              const int stage = t * STAGES + slot;
              const long long from = (long long)(run.first + tile) * p.bits + plane;
              wait(empty + stage * 8, parity ^ 1);
              expect(filled + stage * 8, STAGE);
              bulk_copy(rings + stage * STAGE, p.activations + (from * UNITS + chunk * CHUNK) * 64, STAGE,
                        filled + stage * 8);
              if (++slot == STAGES) slot = 0, parity ^= 1;
            }
      }
      __syncwarp();
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
  Channels& channels = *(Channels*)(memory + WEIGHTS + TEAMS * STAGES * STAGE);
  const int lane = threadIdx.x & 31, worker = uniform(threadIdx.x >> 7), thread = threadIdx.x & 127;
  const int team = worker / SIDE, side = worker % SIDE;
  int at = -1, runs = 0, slot = 0, parity = 0;
  if (team == TEAMS - 1) give_turn(team, side);  // the first team begins
  for (Run run; next_run(p, at, run); runs++) {
    const int n0 = run.column * BN, width = n0 + side * WIDTH;
    everyone();
    load_channels(p, channels, n0);
    asm volatile("bar.sync 15, %0;" ::"n"(WORKERS * 128) : "memory");
    if (!runs) wait_for_the_kernel_before();
    for (int tile = team; tile < run.tiles; tile += TEAMS) {
      const int row0 = (run.first + tile) * BM + (thread >> 5) * 16;
      const bool whole = inside(p, (run.first + tile) * BM, BM, width, WIDTH);
      const Tokens tokens = whole ? load_tokens<true>(p, row0, lane) : load_tokens<false>(p, row0, lane);
      fetch_residual(p, row0, width, lane);
      Residual<WIDTH / 32> residual;
      int acc[WIDTH / 8][4] = {};
      for (int plane = p.bits - 1; plane >= 0; plane--) {
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
          const int stage = team * STAGES + slot;
          wait(weights_in + chunk * 8, runs & 1);
          wait(filled + stage * 8, parity);
          if (plane == p.bits - 1 && chunk == 0) take_turn(team, side);
          const unsigned long long a = descriptor(rings + stage * STAGE, 0);
          const unsigned long long w = descriptor(weights + (side * CHUNKS + chunk) * SLICE, WIDTH * 16);
          asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
          for (int u = 0; u < CHUNK; u++) wgmma(acc, a + u * (PIECE >> 4), w + u * (2 * WIDTH));
          asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
          if (plane == 0 && chunk == CHUNKS - 1) give_turn(team, side);
          if (plane == 0 && chunk == CHUNKS - 1 && whole) residual.load(p, row0, width, lane);
          asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
          if (lane == 0) arrive(empty + stage * 8);
          if (++slot == STAGES) slot = 0, parity ^= 1;
        }
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) asm volatile("" : "+r"(acc[i / 4][i % 4]));  // nothing moves above the wait
        if (plane) {
          const bool last = plane == 1;
          const int more[2] = {last ? MAGIC - tokens.code_sum[0] : 0, last ? MAGIC - tokens.code_sum[1] : 0};
#pragma unroll
          for (int i = 0; i < WIDTH / 2; i++) acc[i / 4][i % 4] = 2 * acc[i / 4][i % 4] + more[i % 4 / 2];
        }
      }
      if (p.bits == 1)  // there was no doubling
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) acc[i / 4][i % 4] += MAGIC - tokens.code_sum[i % 4 / 2];
      float low[2][4] = {};
      if (whole)
        finish<true, WIDTH / 32>(p, channels, tokens, residual, acc, low, row0, n0, side * WIDTH, lane);
      else
        finish<false, WIDTH / 32>(p, channels, tokens, residual, acc, low, row0, n0, side * WIDTH, lane);
      if (NEXT == 2) feed(p, low, row0, lane);
    }
    if (run.tiles % TEAMS && team >= run.tiles % TEAMS) take_turn(team, side), give_turn(team, side);  // no tile left
  }
}
