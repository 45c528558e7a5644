// Row-wise kernel for Hopper, R = 36, whose tokens pass through registers on the way in, where LayerNorm, modulation,
// GELU and signs are applied.
//
// More macros: TEAMS (of a block), STEPS (of a team between barriers of the block).

constexpr int WARPS = TEAM_WARPS * TEAMS, THREADS = 32 * WARPS;
constexpr int SLOTS = TEAMS * STEPS, BATCH = STEP * SLOTS; // tokens between barriers of the block
constexpr int PITCH = 16 * 2 * R + (C == 32 ? 32 : 16);    // of 8 channels of all rows; the gap spreads the banks
constexpr int ODD = C / 8 * PITCH + 16;                    // from an even token to the odd one beside it, C = 32
constexpr int SLOT = C == 32 ? 2 * ODD : 16 * PITCH;       // bytes of a step's tokens
constexpr int PIECES = R / 4;                              // a thread prepares so many four channels of a token
constexpr int STRIDE = 128 / C * 16;                       // between them, in shared memory
constexpr int SIGNS_AT = 2 * SLOTS * SLOT, MIX_AT = SIGNS_AT + SIGNS_BYTES, STAGE_AT = MIX_AT + MIX_BYTES;
constexpr int TABLES_AT = STAGE_AT + SLOTS * CODES;        // of each team: signed 1 + scale, shift
constexpr int OWN = N / 16 / WARPS;                        // a warp's steps of 16 channels of the down-projection
static_assert(BATCH <= 8 && STEPS <= 2, "plan");
static_assert(PRE != 1 || (C == 32 && STEPS == 1), "LayerNorm wants a whole token in a warp");

// Y^T of a step, see `rotate_rows`.
__device__ __forceinline__ void rotate_tokens(float (&y)[40], unsigned x, unsigned signs, unsigned mix, unsigned half) {
  float z[36];
  begin_products();
#pragma unroll
  for (int k = 0; k < SIGNS; k++) {
    const int odd = C == 32 ? k / 2 : 0;
    const unsigned tile = C == 32 ? k : k % 4, negated = C == 32 || k < 4 ? signs : signs + 4 * 2048 * half;
    columns_product(z, operand(negated, 1024, tile * 2048), operand(x, PITCH, odd * ODD + 2 * (k - 2 * odd) * PITCH),
                    k > 0);
  }
  end_products(z);
  rotate_rows(y, z, mix);
}

// What a thread loads and prepares: every 128th four channels of one token; all of it (C = 32) or a quarter.
struct Share {
  unsigned token, first, place;        // of a step; channel / 4; where it goes in a slot
  __device__ __forceinline__ Share(unsigned warp, unsigned lane) {
    token = C == 32 ? warp : warp / 4;
    first = (C == 32 ? 0 : warp % 4 * (N / 16)) + lane;
    const unsigned row = first / (C / 4), chunk = first % (C / 4) / 2;
    const unsigned line = C == 32 ? token / 2 * R + row : token * R + row;
    place = (C == 32 ? token % 2 * ODD : 0) + chunk * PITCH + line * 16 + lane % 2 * 8;
  }
};

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

// Mean and 1 / deviation of a token that a warp has. The sums are those of `mma` of the token with itself and with
// ones, unless its mean is so far from zero that float32 would lose digits of the squares about it.
__device__ __forceinline__ float2 normalise(const uint2 (&v)[PIECES], float epsilon, unsigned lane) {
  const unsigned ones = 0x3f803f80u;
  float d[4] = {};                     // [lanes g][lanes g] of squares, of which the diagonal counts; one times lanes g
#pragma unroll
  for (int i = 0; i < PIECES; i++) mma(d, v[i].x, ones, v[i].y, ones, v[i].x, v[i].y);
  float sum = d[2] + d[3];
  sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
  const float mean = sum * (1.f / N);
  float squares = warp_sum(lane % 4 != lane / 8 ? 0.f : lane & 4 ? d[1] : d[0]) - sum * mean;
  if (sum * mean > 16.f * squares) {
    squares = 0.f;
#pragma unroll
    for (int i = 0; i < PIECES * 4; i++) {
      const unsigned pair = (&v[i / 4].x)[i / 2 % 2];
      const float off = (i % 2 ? high_half(pair) : low_half(pair)) - mean;
      squares = fmaf(off, off, squares);
    }
    squares = warp_sum(squares);
  }
  return make_float2(mean, rsqrtf(squares * (1.f / N) + epsilon));
}

// Four neighbouring channels times their signs.
__device__ __forceinline__ float4 signed_floats(uint2 v, uint2 flip) {
  v.x ^= flip.x, v.y ^= flip.y;
  return make_float4(low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y));
}

// A thread's channels of a token in shared memory: LayerNorm and modulate, or GELU, or nothing; signs.
__device__ __forceinline__ void prepare(const Rowwise& p, unsigned char* slot, const float4* table,
                                        const uint2 (&flips)[PIECES], const Share& share, unsigned lane) {
  uint2 v[PIECES];
#pragma unroll
  for (int i = 0; i < PIECES; i++) v[i] = *(const uint2*)(slot + share.place + i * STRIDE);
  float2 moments;
  if (PRE == 1) moments = normalise(v, p.epsilon, lane), moments.x *= -moments.y;
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    uint2 out = v[i];
    float4 by, to;
    if (PRE == 1) by = table[2 * 32 * i + lane], to = table[2 * 32 * i + 32 + lane];
#pragma unroll
    for (int j = 0; j < 2; j++) {
      unsigned& pair = (&out.x)[j];
      float low = low_half(pair), high = high_half(pair);
      if (PRE == 1) {
        low = fmaf(fmaf(low, moments.y, moments.x), (&by.x)[2 * j], (&to.x)[2 * j]);
        high = fmaf(fmaf(high, moments.y, moments.x), (&by.x)[2 * j + 1], (&to.x)[2 * j + 1]);
      }
      if (PRE == 2) low = gelu(low), high = gelu(high);
      if (PRE) pair = token_pair(low, high);
    }
    if (PRE != 1) out.x ^= flips[i].x, out.y ^= flips[i].y;
    *(uint2*)(slot + share.place + i * STRIDE) = out;
  }
}
