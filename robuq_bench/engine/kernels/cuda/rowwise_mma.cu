// Row-wise kernel with mma.sync: sums over a token, codes and bit planes, the kernel itself. See rowwise_layout.cuh.

// Row i of a warp, i < 16: its row of Y (padding when not below R) and its token of the first layer.
__device__ __forceinline__ unsigned row_of(unsigned warp, unsigned i) {
  return warp < PLAIN ? 16 * (warp % (FULL ? FULL : 1)) + i : 16 * FULL + i % SPAN;
}
__device__ __forceinline__ unsigned token_of(unsigned warp, unsigned i) {
  return warp < PLAIN ? warp / (FULL ? FULL : 1) : (warp - PLAIN) * STACK + i / SPAN;
}

// Leaves a warp's sums of v[layer][rows g, rows g + 8] where `token_sum` finds them after a barrier.
template <class T>
__device__ __forceinline__ void publish(const T (&v)[LAYERS * 2], T (*sums)[PARTS], unsigned warp, unsigned lane) {
  if (warp < PLAIN) {
    T both[LAYERS];
#pragma unroll
    for (int i = 0; i < LAYERS; i++) both[i] = v[2 * i] + v[2 * i + 1];
    const T sum = fold<LAYERS, 16>(both, lane);
    if (lane % (32 / LAYERS) == 0)
      sums[lane / (32 / LAYERS) * 4 + warp / (FULL ? FULL : 1)][warp % (FULL ? FULL : 1)] = sum;
  } else {                             // four rows, because they may be all that a token has here
    const T sum = fold<LAYERS * 2, 8>(v, lane);
    const unsigned i = lane % 16 / (8 / LAYERS), row = i % 2 * 8 + (lane >> 4) * 4;
    if (lane % (8 / LAYERS) == 0) sums[i / 2 * 4 + token_of(warp, row)][FULL + row % SPAN / 4] = sum;
  }
}

template <class T>
__device__ __forceinline__ T token_sum(const T (*sums)[PARTS], unsigned token) {
  T sum = sums[token][0];
#pragma unroll
  for (int i = 1; i < PARTS; i++) sum += sums[token][i];
  return sum;
}

// Bit `position` of a thread's PIECE columns of row h, in the order in which `gather` wants them.
__device__ __forceinline__ float element(const float (&d)[TILES][4], int h, int position) {
  const int j = (position >> 3) + (position >> 2 & 1) * (HALF / 2);
  return d[j + (position >> 1 & 1) * HALF][2 * h + (position & 1)];
}

// Words of a plane from what four lanes have of it: column bit 2 was the lane's, bit log2(C) - 2 comes in its place,
// and each lane has PIECE neighbouring columns of several rows. Then they swap pieces until each has words of one row.
__device__ __forceinline__ unsigned gather(unsigned word, unsigned t) {
  unsigned other = __shfl_xor_sync(~0u, word, 1);
  const unsigned keep = t & 1 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
  word = (word & keep) | (__funnelshift_l(other, other, t & 1 ? 28 : 4) & ~keep);
  if (C == 32) {
    other = __shfl_xor_sync(~0u, word, 1);
    word = __byte_perm(word, other, t & 1 ? 0x3715 : 0x6240);
    other = __shfl_xor_sync(~0u, word, 2);
    word = __byte_perm(word, other, t & 2 ? 0x3276 : 0x5410);
  }
  if (C == 64) {
    other = __shfl_xor_sync(~0u, word, 1);
    word = __byte_perm(word, other, t & 1 ? 0x3276 : 0x5410);
  }
  return word;
}

// A thread's codes, one bit a plane: row h of a layer, i = 2 layer + h, is piece i / WORDS from the bottom of
// words[plane][i % WORDS]. Each bit is the sign of what the bits above leave: y, then |y| less half the remaining
// range, and so on. These are bits of a Gray code: each plane is the exclusive or of its own signs and all those above.
__device__ __forceinline__ void quantise(const float (&y)[LAYERS][TILES][4], const float (&cell)[LAYERS * 2],
                                         unsigned (&words)[BITS][WORDS]) {
#pragma unroll
  for (int i = LAYERS * 2 - 1; i >= 0; i--)
#pragma unroll
    for (int position = PIECE - 1; position >= 0; position--) {
      float v = element(y[i / 2], i % 2, position);
      if (MIDTREAD) v += 0.5f * cell[i];
#pragma unroll
      for (int bit = BITS - 1; bit >= 0; bit--) {
        words[bit][i % WORDS] = __funnelshift_l(__float_as_uint(v), words[bit][i % WORDS], 1);
        if (bit) v = fabsf(v) - (1 << (bit - 1)) * cell[i];
      }
    }
#pragma unroll
  for (int i = BITS * WORDS - 1; i >= 0; i--)
    words[i / WORDS][i % WORDS] ^= i / WORDS == BITS - 1 ? ~0u : words[min(i / WORDS + 1, BITS - 1)][i % WORDS];
}

// As `publish`, for counts[word], the sum of codes in a thread's words of all planes, which are of piece
// t % PIECES * WORDS + word.
__device__ __forceinline__ void publish_codes(const int (&counts)[WORDS], int (*sums)[PARTS], unsigned warp,
                                              unsigned lane) {
  constexpr unsigned LAYER_LANES = C == 64 ? LAYERS - 1 : LAYERS == 4 ? 3 : LAYERS == 2 ? 2 : 0;  // t tells the layer
  const unsigned piece = lane % PIECES * WORDS;
  if (warp < PLAIN) {
    int sum = counts[0];
#pragma unroll
    for (int word = 1; word < WORDS; word++) sum += counts[word];
#pragma unroll
    for (int d = 16; d; d /= 2)
      if (!(LAYER_LANES & d)) sum += __shfl_xor_sync(~0u, sum, d);
    if ((lane & ~LAYER_LANES) == 0) sums[piece / 2 * 4 + warp / (FULL ? FULL : 1)][warp % (FULL ? FULL : 1)] = sum;
  } else {
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      int sum = counts[word];
#pragma unroll
      for (int d = 8; d; d /= 2)
        if (d >= PIECES) sum += __shfl_xor_sync(~0u, sum, d);
      const unsigned i = piece + word, row = i % 2 * 8 + (lane >> 4) * 4;
      if (lane % 16 < PIECES) sums[i / 2 * 4 + token_of(warp, row)][FULL + row % SPAN / 4] = sum;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rowwise(const __grid_constant__ Rowwise p) {
  extern __shared__ __align__(128) unsigned char x[];  // X of all tokens
  // Constants of each lane: mix^T in mma fragments, [tile of 16 rows][8 rows of X][half]; H_16, see contract_columns.
  __shared__ unsigned mix[FULL + (SLOT > 0)][GROUPS][2][32], hadamard_16[4][32];
  __shared__ float absolute_sums[TOKENS][PARTS], plain_sums[CENTER ? TOKENS : 1][PARTS];
  __shared__ int code_sums[TOKENS][PARTS];
  __shared__ float2 moments[PRE == 1 ? WARPS : 1][TOKENS];
  __shared__ float low_sums[RANK ? DOWN_WARPS : 1][TOKENS * 16];
  const unsigned thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
  const unsigned x_address = (unsigned)__cvta_generic_to_shared(x);
  const bool stacked = warp >= PLAIN;
  const Share share(warp, lane);

  for (unsigned i = thread; i < (FULL + (SLOT > 0)) * GROUPS * 64; i += THREADS) {
    const unsigned tile = i / 64 / GROUPS, h = i / 32 % 2, k = i / 64 % GROUPS * 8 + i % 4 * 2;
    const unsigned row = row_of(tile < FULL ? tile : PLAIN, i / 4 % 8 + 8 * h);
    const float a = row < R && k < R ? p.mix[k * R + row] : 0.f;
    const float b = row < R && k + 1 < R ? p.mix[(k + 1) * R + row] : 0.f;
    (&mix[0][0][0][0])[i] = token_pair(a, b);
  }
  for (unsigned i = thread; i < 128; i += THREADS) {
    const unsigned n = i / 4 % 8, column = (n & 1) | i / 64 << 1 | (n >> 1) << 2, k = 2 * (i % 4) + 8 * (i / 32 % 2);
    const unsigned low = __popc(k & column) & 1, high = __popc((k + 1) & column) & 1;
    hadamard_16[i / 32][i % 32] = 0x3f803f80u | low << 15 | high << 31;
  }
  // The words of a plane that a thread stores: where in 64 tokens, and of which token.
  unsigned place[WORDS], token_placed[WORDS];
#pragma unroll
  for (int word = 0; word < WORDS; word++) {
    const unsigned i = t % PIECES * WORDS + word, row = row_of(warp, g + i % 2 * 8);  // see quantise
    const unsigned channel = row * C + t / PIECES * 32;
    token_placed[word] = row < R ? i / 2 * 4 + token_of(warp, g + i % 2 * 8) : 1u << 30;
    place[word] = channel / 128 * 1024 + token_placed[word] * 16 + channel / 8 % 16;
  }
  // Addresses for contract_rows; rows past R repeat real ones, times zero.
  unsigned matrices[2][2];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const unsigned first = i / 2 * (GROUPS - 1) * 8, chunk = (first + (lane & 7) % min(R - first, 8u)) * (C / 8);
    matrices[i / 2][i % 2] = (swizzle(chunk + i % 2 * 4 + (lane >> 3)) - first * (C / 8)) * 16;
  }
  auto load = [&](int base) {
#pragma unroll
    for (unsigned layer = 0; layer < LAYERS; layer++) {
      const unsigned token = 4 * layer + share.token;
      const uint4* from = p.x + (long long)min(base + (int)token, p.m - 1) * CHUNKS;
#pragma unroll
      for (int i = 0; i < SHARE; i++)
        if (share.has(i)) copy_async(x_address + token * PITCH + share.at(i) * 16, from + share.chunk(i));
    }
  };
  auto finish = [&](int base) {        // what is left to be stored of a round, after one more barrier
    if (thread >= TOKENS || base + (int)thread >= p.m) return;
    p.code_sum[base + thread] = token_sum(code_sums, thread);
    p.step[base + thread] = fmaxf(token_sum(absolute_sums, thread) * p.cell, 1e-12f);
    if (CENTER) p.offset[base + thread] = token_sum(plain_sums, thread) * (p.norm / N);
  };

  wait_for_the_kernel_before();
  clear_sums(p);

  int base = blockIdx.x * TOKENS;
  const int stride = gridDim.x * TOKENS;
  load(base);
  __syncthreads();
  for (bool again = false;; again = true) {
    asm volatile("cp.async.wait_all;" ::: "memory");
    prepare(p, (uint4*)x, moments, share, base);
    __syncthreads();                   // X is complete
    if (again) finish(base - stride);

    if (RANK && warp < DOWN_WARPS) project_down(p, x, low_sums[warp], warp, lane);
    float y[LAYERS][TILES][4] = {};
    auto contract = [&](unsigned first, const unsigned(&a)[GROUPS][2]) {
#pragma unroll
      for (int layer = 0; layer < LAYERS; layer++)
        contract_rows(y[layer], a, matrices, x_address + (4 * layer + first) * PITCH);
    };
    unsigned a[GROUPS][2];
    if (!stacked) {
#pragma unroll
      for (int i = 0; i < GROUPS * 2; i++) a[i / 2][i % 2] = mix[warp % (FULL ? FULL : 1)][i / 2][i % 2][lane];
      contract(token_of(warp, 0), a);
    } else {                           // one token after the other, the rows of the others times zero
#pragma unroll 1
      for (unsigned s = 0; s < STACK; s++) {
#pragma unroll
        for (int i = 0; i < GROUPS * 2; i++)
          a[i / 2][i % 2] = token_of(PLAIN, g + i % 2 * 8) == s ? mix[FULL ? FULL : 0][i / 2][i % 2][lane] : 0;
        contract(token_of(warp, s * SPAN), a);
      }
    }
    __syncthreads();                   // X may be overwritten
    const bool more = base + stride < p.m;
    if (more) load(base + stride);
#pragma unroll 1
    for (int j = thread; RANK && j < min(TOKENS, p.m - base) * 16; j += THREADS) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < DOWN_WARPS; i++) sum += low_sums[i][j];
      p.low[base * 16 + j] = (unsigned short)bf16_pair(sum, 0.f);
    }
    const unsigned hadamard[2][2] = {hadamard_16[0][lane], hadamard_16[1][lane], hadamard_16[2][lane],
                                     hadamard_16[3][lane]};
#pragma unroll
    for (int layer = 0; layer < LAYERS; layer++) contract_columns(y[layer], hadamard);

    if (CENTER) {
      float sums[LAYERS * 2] = {};
#pragma unroll
      for (int i = 0; i < LAYERS * TILES * 4; i++)
        sums[i / 4 / TILES * 2 + i % 4 / 2] += y[i / 4 / TILES][i / 4 % TILES][i % 4];
      publish(sums, plain_sums, warp, lane);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < LAYERS * 2; i++) {
        const float sum = token_sum(plain_sums, i / 2 * 4 + token_of(warp, g + i % 2 * 8));
        const float centre = row_of(warp, g + i % 2 * 8) < R ? sum * (1.f / N) : 0.f;
#pragma unroll
        for (int j = 0; j < TILES * 2; j++) y[i / 2][j / 2][i % 2 * 2 + j % 2] -= centre;
      }
    }
    float totals[LAYERS * 2] = {};
#pragma unroll
    for (int i = 0; i < LAYERS * TILES * 4; i++)
      totals[i / 4 / TILES * 2 + i % 4 / 2] += fabsf(y[i / 4 / TILES][i / 4 % TILES][i % 4]);
    publish(totals, absolute_sums, warp, lane);
    __syncthreads();

    float cell[LAYERS * 2];
#pragma unroll
    for (int i = 0; i < LAYERS * 2; i++) {
      const float sum = token_sum(absolute_sums, i / 2 * 4 + token_of(warp, g + i % 2 * 8));
      cell[i] = fmaxf(sum * p.cell, 1e-12f) * p.unscale;
    }
    unsigned words[BITS][WORDS];
    quantise(y, cell, words);
    unsigned char* const block = p.planes + (long long)(base >> 6) * (BITS * UNITS * 1024) + (base & 63) * 16;
    int counts[WORDS] = {};
#pragma unroll
    for (int i = 0; i < BITS * WORDS; i++) {
      const unsigned word = gather(words[i / WORDS][i % WORDS], t), token = token_placed[i % WORDS];
      if (base + (int)token < p.m) *(unsigned*)(block + place[i % WORDS] + i / WORDS * UNITS * 1024) = word;
      counts[i % WORDS] += token < TOKENS ? __popc(word) << (i / WORDS) : 0;
    }
    publish_codes(counts, code_sums, warp, lane);
    if (!more) break;
    base += stride;
  }
  __syncthreads();
  finish(base);
}
