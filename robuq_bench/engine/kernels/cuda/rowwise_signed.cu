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
constexpr int SIGNS_AT = RING * PAIR, MIX_AT = SIGNS_AT + SIGNS_BYTES, STAGES_AT = MIX_AT + MIX_BYTES;
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

// Y^T of a step, see `rotate_rows`. x: as for `swizzled`.
__device__ __forceinline__ void rotate_tokens(float (&y)[40], unsigned x, unsigned signs, unsigned mix, unsigned half) {
  float z[36];
  begin_products();
#pragma unroll
  for (int k = 0; k < SIGNS; k++)
    columns_product(z, operand(k < 4 ? signs : signs + SIGNS_BYTES / 2 * half, 1024, k % 4 * 2048),
                    swizzled(x, k / 4 * BOX + k % 4 * 32), k > 0);
  end_products(z);
  rotate_rows(y, z, mix);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rowwise(const __grid_constant__ Signed all) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ unsigned long long barriers[RING];
  __shared__ float absolute_sums[2][STEP][PARTS], plain_sums[CENTER ? 2 : 1][STEP][PARTS];
  __shared__ unsigned code_sums[2][TEAM_WARPS];
  const Rowwise& p = all.rowwise;
  const unsigned thread = threadIdx.x, lane = thread & 31, warp = thread / 32, t = lane & 3;
  const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  const unsigned filled = (unsigned)__cvta_generic_to_shared(barriers);
  const int pairs = (p.m + 1) / 2, each = (pairs + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, count = min(each, pairs - first);
  if (thread < RING) start_barrier(filled + 8 * thread, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  make_signs<THREADS>(shared + SIGNS_AT), make_mix<THREADS>(p, shared + MIX_AT);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
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
    rotate_tokens(y, uniform((address + slot * PAIR) / 16 | 1 << 16), address + SIGNS_AT, address + MIX_AT,
                  uniform(warp / 4));
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
