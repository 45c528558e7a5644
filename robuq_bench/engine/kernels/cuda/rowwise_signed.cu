// Row-wise kernel for Hopper, R = 36, C = 128: tokens that nothing precedes and that bring their signs along. They come
// by tensor map in rows of 128 bytes, swizzled, and are operand B as they lie; no thread touches them.
//
// A block is one team (rowwise_hopper.cuh) with RING slots of two tokens; a slot is asked for again as soon as every warp
// has multiplied what was there. One barrier a step.

struct alignas(64) TensorMap { unsigned char bytes[128]; };

struct Signed {
  TensorMap tokens;                    // [M R][C] bf16 in boxes of 2 R rows by 64 channels
  Rowwise rowwise;
};

constexpr int BOX = 2 * R * 128, PAIR = 2 * BOX;           // bytes: 64 channels of all rows of two tokens, and all
constexpr int SIGNS_AT = RING * PAIR, MIX_AT = SIGNS_AT + (RS ? 0 : SIGNS_BYTES), STAGES_AT = MIX_AT + MIX_BYTES;
constexpr int THREADS = 32 * TEAM_WARPS;
static_assert(C == 128 && PRE == 0 && !RANK, "plan");

__device__ __forceinline__ void start_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\nbra again;\n"
      "over:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ void fetch(unsigned to, const TensorMap& map, int channel, int row, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      ::"r"(to), "l"(&map), "r"(channel), "r"(row), "r"(barrier) : "memory");
}

// A wgmma operand of rows of 128 bytes, swizzled, eight of which are 1024 bytes; `at` is its start / 16 with bit 16 set.
__device__ __forceinline__ unsigned long long swizzled(unsigned at, unsigned plus) {
  return (unsigned long long)(at + plus / 16) | 64ull << 32 | 1ull << 62;
}

template <int SIGN>
__device__ __forceinline__ void columns_product_r(float (&d)[36], const unsigned (&a)[4], unsigned long long b, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %41, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16\n"
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
      "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35}, {%36,%37,%38,%39}, %40, add, %42, 1, 0;\n}"
      : FOUR(d, 0), FOUR(d, 4), FOUR(d, 8), FOUR(d, 12), FOUR(d, 16), FOUR(d, 20), FOUR(d, 24), FOUR(d, 28), FOUR(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(SIGN));
}

// Y^T of a step, see `rotate_rows`. base: what a lane has of the 16 x 16 signs that all tiles of H_C are made of.
__device__ __forceinline__ void rotate_tokens(float (&y)[40], unsigned x, unsigned signs, unsigned mix,
                                              const unsigned (&base)[4], unsigned warp) {
  float z[36];
  const unsigned half = uniform(warp / 4);
#if RS
  unsigned h[4][4];
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) h[k][i] = base[i] ^ (__popc(warp & k & 3) & 1) * 0x80008000u;
  begin_products();
#pragma unroll
  for (int k = 0; k < 4; k++) columns_product_r<1>(z, h[k], swizzled(x, k * 32), k > 0);
  if (half) {
#pragma unroll
    for (int k = 0; k < 4; k++) columns_product_r<-1>(z, h[k], swizzled(x, BOX + k * 32), 1);
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) columns_product_r<1>(z, h[k], swizzled(x, BOX + k * 32), 1);
  }
#else
  begin_products();
#pragma unroll
  for (int k = 0; k < SIGNS; k++)
    columns_product(z, operand(k < 4 ? signs : signs + 4 * 2048 * half, 1024, k % 4 * 2048),
                    swizzled(x, k / 4 * BOX + k % 4 * 32), k > 0);
#endif
  end_products(z);
  rotate_rows(y, z, mix);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rowwise(const __grid_constant__ Signed all) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ unsigned long long barriers[RING];
  __shared__ float absolute_sums[2][STEP][PARTS], plain_sums[CENTER ? 2 : 1][STEP][PARTS];
  __shared__ unsigned code_sums[2][TEAM_WARPS];
  const Rowwise& p = all.rowwise;
  const unsigned thread = threadIdx.x, lane = thread & 31, warp = thread / 32, g = lane >> 2, t = lane & 3;
  const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  const unsigned filled = (unsigned)__cvta_generic_to_shared(barriers);
  const int pairs = (p.m + 1) / 2, each = (pairs + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, count = min(each, pairs - first);
  if (thread < RING) start_barrier(filled + 8 * thread, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  if (!RS) make_signs<THREADS>(shared + SIGNS_AT);
  make_mix<THREADS>(p, shared + MIX_AT);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  unsigned base[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned low = 2 * g + i % 2, k = 2 * t + i / 2 * 8;
    base[i] = ONES | (__popc(low & k) & 1) << 15 | (__popc(low & (k + 1)) & 1) << 31;
  }
  wait_for_the_kernel_before();
  clear_sums(p);
  if (count <= 0) return;
  auto ask = [&](int step) {
    const unsigned slot = step % RING, to = address + slot * PAIR, barrier = filled + 8 * slot;
    expect(barrier, PAIR);
    fetch(to, all.tokens, 0, (first + step) * 2 * R, barrier);
    fetch(to + BOX, all.tokens, 64, (first + step) * 2 * R, barrier);
  };
  if (thread == 0)
    for (int step = 0; step < min(RING, count); step++) ask(step);

  auto store = [&](int step) {
    store_codes(p, shared + STAGES_AT + step % 2 * CODES, code_sums[step % 2], 2 * (first + step), thread);
  };
  unsigned slot = 0, parity = 0;
#pragma unroll 1
  for (int step = 0; step < count; step++) {
    const int odd = step % 2;
    float y[40];
    wait(filled + 8 * slot, parity);
    rotate_tokens(y, uniform((address + slot * PAIR) / 16 | 1 << 16), address + SIGNS_AT, address + MIX_AT, base, warp);
    if (++slot == RING) slot = 0, parity ^= 1;

    float sums[2] = {}, cells[2];
    if (CENTER) {
      float centre[2];
      add_up(sums, y, t, [](float v) { return v; });
      publish(sums, plain_sums[odd], warp, lane);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 2; i++) centre[i] = total(plain_sums[odd][i]) * (1.f / N), sums[i] = 0.f;
      take_off(y, centre, t);
    }
    add_up(sums, y, t, [](float v) { return fabsf(v); });
    publish(sums, absolute_sums[odd], warp, lane);
    __syncthreads();                   // also: the slot has been multiplied, the codes of the step before are there
    if (thread == 0 && step + RING < count) ask(step + RING);
    const int token = 2 * (first + step) + thread;
    if (thread < STEP && token < p.m) {
      p.step[token] = fmaxf(total(absolute_sums[odd][thread]) * p.cell, 1e-12f);
      if (CENTER) p.offset[token] = total(plain_sums[odd][thread]) * (p.norm / N);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) cells[i] = fmaxf(total(absolute_sums[odd][i]) * p.cell, 1e-12f) * p.unscale;
    make_codes(y, cells, shared + STAGES_AT + odd * CODES, code_sums[odd][warp], warp, lane);
    if (step) store(step - 1);
  }
  __syncthreads();
  store(count - 1);
}
