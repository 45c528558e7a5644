// Row-wise kernel for Hopper: a block goes through its tokens. See rowwise_team.cuh.

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rowwise(const __grid_constant__ Rowwise p) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float absolute_sums[SLOTS][STEP][PARTS], plain_sums[CENTER ? SLOTS : 1][STEP][PARTS];
  __shared__ unsigned code_sums[SLOTS][TEAM_WARPS];
  __shared__ float low_sums[RANK ? 2 : 1][WARPS][BATCH * 16];
  const unsigned thread = threadIdx.x, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const unsigned team = thread / (32 * TEAM_WARPS), member = thread % (32 * TEAM_WARPS), warp = member / 32;
  const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  const Share share(warp, lane);

  const int batches = (p.m + BATCH - 1) / BATCH, each = (batches + gridDim.x - 1) / gridDim.x;
  const int first = blockIdx.x * each, last = min(first + each, batches);
  make_signs<THREADS>(shared + SIGNS_AT), make_mix<THREADS>(p, shared + MIX_AT);
  // Signs of what a thread prepares (with PRE = 1 they are in the table), and its part of the down-projection's matrix:
  // [step of 16 channels][lane].
  constexpr int DEPTH = 9, ROUNDS = OWN / DEPTH;
  uint2 flips[PIECES];
  uint4 down[ROUNDS][DEPTH];
  auto get_flips = [&] {
#pragma unroll
    for (int i = 0; PRE != 1 && i < PIECES; i++) flips[i] = ((const uint2*)p.flips)[share.first + 32 * i];
  };
  auto get_down = [&](int round) {
#pragma unroll
    for (int i = 0; RANK && i < DEPTH; i++) down[round][i] = p.down[(round * DEPTH + i) * THREADS + thread];
  };
  get_flips(), get_down(0);
#pragma unroll 1
  for (int i = thread; RANK && i < (ROUNDS - 1) * DEPTH * THREADS / 8; i += THREADS)  // the rest as near as it fits
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p.down + DEPTH * THREADS + i * 8));

  auto token_of = [&](int batch, int step) { return batch * BATCH + (int)(team * STEPS + step) * STEP; };
  auto slot_of = [&](int batch, int step) {
    return ((batch - first & 1) * SLOTS + team * STEPS + step) * SLOT;
  };
  auto load = [&](int batch) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const int token = min(token_of(batch, step) + (int)share.token, p.m - 1);
      const uint2* const from = (const uint2*)p.x + (long long)token * (N / 4) + share.first;
      const unsigned to = address + slot_of(batch, step) + share.place;
#pragma unroll
      for (int i = 0; i < PIECES; i++)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to + i * STRIDE), "l"(from + 32 * i) : "memory");
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
  };
  // The table of a batch's image, of which the team's tokens are, unless it is there.
  float4* const table = (float4*)(shared + TABLES_AT + team * (8 * N));
  int tabulated = -1;
  auto tabulate = [&](int batch) {
    const int image = min(token_of(batch, 0), p.m - 1) / p.image_tokens;
    if (image == tabulated) return;
    tabulated = image;
    const uint2 *const scale = (const uint2*)(p.scale + image * p.modulation_stride),
                *const shift = (const uint2*)(p.shift + image * p.modulation_stride);
    constexpr int EACH = (N / 4 + 32 * TEAM_WARPS - 1) / (32 * TEAM_WARPS);
    uint2 by[EACH], to[EACH], flip[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const unsigned i = min(member + j * 32 * TEAM_WARPS, N / 4 - 1);
      by[j] = __ldcg(scale + i), to[j] = __ldcg(shift + i), flip[j] = ((const uint2*)p.flips)[i];
    }
    asm volatile("" ::: "memory");     // or the compiler moves the last loads behind the first stores
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const unsigned i = member + j * 32 * TEAM_WARPS;
      if (i >= N / 4) break;
      float4 factor = signed_floats(by[j], flip[j]);
      const float4 one = signed_floats(make_uint2(0x3f803f80u, 0x3f803f80u), flip[j]);
      factor.x += one.x, factor.y += one.y, factor.z += one.z, factor.w += one.w;
      table[i / 32 * 64 + i % 32] = factor;
      table[i / 32 * 64 + 32 + i % 32] = signed_floats(to[j], flip[j]);
    }
  };
  auto put = [&](int batch, int step) {
    if (step + 1 < STEPS)
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    else
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    prepare(p, shared + slot_of(batch, step), table, flips, share, lane);
  };
  // Threads of a team wait for each other.
  auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(32 * TEAM_WARPS) : "memory"); };
  // What is left to be stored of a batch, after the next barrier of the block.
  auto finish = [&](int batch) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const unsigned slot = team * STEPS + step;
      store_codes(p, shared + STAGE_AT + slot * CODES, code_sums[slot], token_of(batch, step), member);
    }
#pragma unroll 1
    for (int i = thread; RANK && i < min(BATCH, p.m - batch * BATCH) * 16; i += THREADS) {
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) sum += low_sums[batch - first & 1][w][i];
      p.low[batch * BATCH * 16 + i] = (unsigned short)bf16_pair(sum, 0.f);
    }
  };

  if (PRE == 1 && p.settled && first < last) tabulate(first);
  wait_for_the_kernel_before();
  clear_sums(p);
  if (first >= last) return;
  load(first);
  if (PRE == 1) tabulate(first), meet();
#pragma unroll 1
  for (int step = 0; step < STEPS; step++) put(first, step);
#pragma unroll 1
  for (int batch = first; batch < last; batch++) {
    const bool more = batch + 1 < last;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();                   // this batch is in shared memory, and the one before is done
    const bool odd = batch - first & 1;
    if (more) load(batch + 1);
    if (PRE == 1 && more) tabulate(batch + 1);
    if (batch > first) finish(batch - 1);

    if (RANK) {
      const unsigned all = thread / 32, token = g % BATCH, slot = token / STEP, chunk = all / 2 * 4 + t;
      const unsigned line = (C == 32 ? token % 4 / 2 * R : token % 2 * R) + chunk / (C / 8);
      const unsigned char* const from = shared + odd * SLOTS * SLOT + slot * SLOT + (C == 32 ? token % 2 * ODD : 0) +
                                        chunk % (C / 8) * PITCH + line * 16 + all % 2 * 8;
      float low[2][4] = {};            // rank g or g + 8, token 2 t or 2 t + 1; two sums that need not wait
#pragma unroll
      for (int round = 0; round < ROUNDS; round++) {
        if (round + 1 < ROUNDS) get_down(round + 1);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
          const uint2 b = *(const uint2*)(from + (round * DEPTH + i) * (WARPS * 2 / (C / 8)) * 16);
          const uint4& a = down[round][i];
          mma_tokens(low[i % 2], a.x, a.y, a.z, a.w, b.x, b.y);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (2 * t < BATCH) low_sums[odd][all][(2 * t + i % 2) * 16 + g + i / 2 * 8] = low[0][i] + low[1][i];
    }

#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
      const unsigned slot = team * STEPS + step;
      float y[40];
      rotate_tokens(y, uniform(address + slot_of(batch, step)), address + SIGNS_AT, address + MIX_AT,
                    uniform(warp / 4));

      if (CENTER) {
        float sums[2] = {}, centre[2];
        add_up(sums, y, t, [](float v) { return v; });
        publish(sums, plain_sums[slot], warp, lane);
        meet();
#pragma unroll
        for (int i = 0; i < 2; i++) centre[i] = total(plain_sums[slot][token_in_step(i, warp)]) * (1.f / N);
        take_off(y, centre, t);
      }
      float sums[2] = {}, cells[2];
      add_up(sums, y, t, [](float v) { return fabsf(v); });
      publish(sums, absolute_sums[slot], warp, lane);
      meet();
      if (member < STEP && token_of(batch, step) + (int)member < p.m) {
        const int at = token_of(batch, step) + member;
        p.step[at] = fmaxf(total(absolute_sums[slot][member]) * p.cell, 1e-12f);
        if (CENTER) p.offset[at] = total(plain_sums[slot][member]) * (p.norm / N);
      }

#pragma unroll
      for (int i = 0; i < 2; i++)
        cells[i] = fmaxf(total(absolute_sums[slot][token_in_step(i, warp)]) * p.cell, 1e-12f) * p.unscale;
      make_codes(y, cells, shared + STAGE_AT + slot * CODES, code_sums[slot][warp], warp, lane);

      if (more) get_flips(), put(batch + 1, step);
    }
    get_down(0);
  }
  __syncthreads();
  finish(last - 1);
}
