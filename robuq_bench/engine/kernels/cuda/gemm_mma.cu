// Bit-serial GEMM, ternary weights x 1-4-bit activation codes, with mma.sync b1 (sm_80 and newer). BM = 128.
//
// A block keeps the two weight planes of BN channels in shared memory for all of K and streams activation planes past
// them, high plane first; between planes the accumulators are doubled (Horner), so that one serves all bits.
// Each worker is four warps on its own tile with its own ring: while one stores its outputs the others multiply.

template <bool VALUE>
struct Constant {
  static constexpr bool value = VALUE;
};

static_assert(BM == 128 && UNITS % CHUNK == 0, "tile");
constexpr int WARP_N = BN / 2, NT = WARP_N / 8, STAGE = 2 * CHUNK * PIECE, WEIGHTS = UNITS * 2 * BN * 16;

__device__ __forceinline__ void copy16(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], unsigned at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void mma(int (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
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

// One stage: 64 tokens x WARP_N channels of one plane, CHUNK units. P and Q of a channel are laid side by side along K,
// against the same activation bits twice: a unit is then one k256 instruction, and an odd number of units is no waste.
__device__ __forceinline__ void multiply(int (&acc)[4][NT][4], unsigned a, unsigned w, int lane) {
  const unsigned lane_a = a + ((lane & 7) + ((lane >> 3) & 1) * 8) * 16 + (lane >> 4) * PIECE;
  // Weight matrices in the order P(u), P(u + 1), Q(u), Q(u + 1) of eight channels.
  const unsigned lane_w = w + (lane & 7) * 16 + ((lane >> 3) & 1) * 2 * BN * 16 + (lane >> 4) * BN * 16;
#pragma unroll
  for (int u = 0; u + 2 <= CHUNK; u += 2) {
    unsigned fa[4][4], fw[4];
#pragma unroll
    for (int i = 0; i < 4; i++) ldmatrix4(fa[i], lane_a + u * PIECE + i * 256);
#pragma unroll
    for (int j = 0; j < NT; j++) {
      ldmatrix4(fw, lane_w + u * 2 * BN * 16 + j * 128);
#pragma unroll
      for (int i = 0; i < 4; i++) mma(acc[i][j], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fw[0], fw[1]);
#pragma unroll
      for (int i = 0; i < 4; i++) mma(acc[i][j], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fw[2], fw[3]);
    }
  }
  if (CHUNK % 2) {
    constexpr int u = CHUNK - 1;
    // Two m16 tiles, or two n8 tiles with both planes, a load.
    const unsigned odd_a = a + u * PIECE + ((lane & 7) + (lane >> 3) * 8) * 16;
    const unsigned odd_w = w + u * 2 * BN * 16 + ((lane & 7) + (lane >> 4) * 8) * 16 + ((lane >> 3) & 1) * BN * 16;
    unsigned fa[2][4], fw[4];
    ldmatrix4(fa[0], odd_a), ldmatrix4(fa[1], odd_a + 512);
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      ldmatrix4(fw, odd_w + j * 128);
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const unsigned a0 = fa[i / 2][i % 2 * 2], a1 = fa[i / 2][i % 2 * 2 + 1];
          mma(acc[i][j + k], a0, a1, a0, a1, fw[2 * k], fw[2 * k + 1]);
        }
    }
  }
}

extern "C" __global__ void __launch_bounds__(WORKERS * 128, 1) gemm(const __grid_constant__ Gemm p) {
  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char* weights = memory;
  Channels& channels = *(Channels*)(memory + WEIGHTS + WORKERS * STAGES * STAGE);
  const int lane = threadIdx.x & 31, worker = threadIdx.x >> 7, thread = threadIdx.x & 127;
  const int warp_m = (thread >> 5) & 1, warp_n = thread >> 6;
  const unsigned ring = shared_address(memory + WEIGHTS + worker * STAGES * STAGE);
  const int m_pieces = (p.m + 63) / 64, padded = (p.n + 127) / 128 * 128;

  let_the_next_kernel_start();
  wait_for_the_kernel_before();
  int at = -1;
  for (Run run; next_run(p, at, run);) {
    const int n0 = run.column * BN;
    __syncthreads();  // every worker has finished with the last run's weights
    for (int i = threadIdx.x; i < UNITS * 2 * BN; i += WORKERS * 128) {
      const int row = i % BN, part = i / BN;  // part counts (unit, P or Q)
      const int n = min(n0 + row, padded - 1);
      copy16(shared_address(weights + i * 16), p.weights + ((long long)(n / 128) * UNITS * 2 + part) * 128 + n % 128);
    }
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    load_channels(p, channels, n0);
    __syncthreads();

    Cursor ahead{worker, p.bits - 1, 0};
    int fill = 0;
    auto load = [&] {
      if (ahead.tile < run.tiles) {
        const int piece = (run.first + ahead.tile) * 2;
        const unsigned to = ring + fill * STAGE + thread * 16;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const long long from = (long long)min(piece + half, m_pieces - 1) * p.bits + ahead.plane;
          const uint4* source = p.activations + (from * UNITS + ahead.chunk * CHUNK) * 64;
          for (int i = thread; i < CHUNK * 64; i += 128)
            copy16(to + half * CHUNK * PIECE + (i - thread) * 16, source + i);
        }
        ahead.advance(p.bits);
      }
      fill = fill + 1 == STAGES ? 0 : fill + 1;
      asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) load();

    int slot = 0;
    for (int tile = worker; tile < run.tiles; tile += WORKERS) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        fetch_residual(p, (run.first + tile) * BM + warp_m * 64 + i * 16, n0 + warp_n * WARP_N, lane);
      int acc[4][NT][4] = {};
      for (int plane = p.bits - 1; plane >= 0; plane--) {
        for (int chunk = 0; chunk < UNITS / CHUNK; chunk++) {
          asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
          worker_barrier(worker);  // the stage is filled for all, and the one to fill next has been read by all
          load();
          multiply(acc, ring + slot * STAGE + warp_m * CHUNK * PIECE,
                   shared_address(weights) + chunk * CHUNK * 2 * BN * 16 + warp_n * WARP_N * 16, lane);
          slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        if (plane)
#pragma unroll
          for (int i = 0; i < 4 * NT * 4; i++) (&acc[0][0][0])[i] *= 2;
      }
      const int col = warp_n * WARP_N;
      auto finish_all = [&](auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row0 = (run.first + tile) * BM + warp_m * 64 + i * 16;
          const Tokens tokens = load_tokens<WHOLE>(p, row0, lane);
#pragma unroll
          for (int j = 0; j < NT * 4; j++) acc[i][j / 4][j % 4] += MAGIC - tokens.code_sum[j % 4 / 2];
          Residual<NT / 4> residual;
          if (WHOLE) residual.load(p, row0, n0 + col, lane);
          float low[2][4] = {};
          finish<WHOLE, NT / 4>(p, channels, tokens, residual, acc[i], low, row0, n0, col, lane);
          if (NEXT == 2) feed(p, low, row0, lane);
        }
      };
      if (inside(p, (run.first + tile) * BM, BM, n0, BN))
        finish_all(Constant<true>{});
      else
        finish_all(Constant<false>{});
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
}
