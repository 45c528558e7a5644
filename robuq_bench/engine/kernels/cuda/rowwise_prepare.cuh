// Row-wise kernel: what precedes the rotation (LayerNorm and modulate, GELU), signs.

// What a thread loads and prepares: chunk `first` of a token of each layer, and every eighth after it.
struct Share {
  unsigned warp, token, first, place;
  __device__ __forceinline__ Share(unsigned warp, unsigned lane)
      : warp(warp), token(lane >> 3), first(8 * SHARE * warp + (lane & 7)), place(swizzle(first)) {}
  __device__ __forceinline__ unsigned chunk(unsigned i) const { return first + 8 * i; }
  __device__ __forceinline__ unsigned at(unsigned i) const {
    return SHARE & (SHARE - 1) ? swizzle(chunk(i)) : (place ^ key(i)) + 8 * i;  // the same, in fewer instructions
  }
  __device__ __forceinline__ bool has(unsigned i) const { return WARPS * SHARE * 8 == CHUNKS || chunk(i) < CHUNKS; }
};

// Channels of a token that a warp prepares.
__device__ __forceinline__ float share_size(unsigned warp) {
  return WARPS * SHARE * 64 == N ? SHARE * 64.f : 64.f * max(min(N / 64 - (int)warp * SHARE, SHARE), 0);
}

// A warp's share of each token: mean and sum of squares about it, less the share's first element at first, so that
// little cancels.
__device__ __forceinline__ void share_moments(const uint4* x, float2 (*moments)[TOKENS], const Share& share) {
#pragma unroll
  for (int layer = 0; layer < LAYERS; layer++) {
    const uint4* const token = x + (4 * layer + share.token) * (PITCH / 16);
    float sum = 0.f, squares = 0.f, origin = 0.f;
#pragma unroll 1
    for (int i = 0; i < SHARE; i++)
      if (share.has(i)) {
        const uint4 v = token[swizzle(share.chunk(i))];
        if (i == 0) origin = __shfl_sync(~0u, low_half(v.x), 0, 8);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float a = low_half((&v.x)[j]) - origin, b = high_half((&v.x)[j]) - origin;
          sum += a + b, squares = fmaf(a, a, fmaf(b, b, squares));
        }
      }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d), squares += __shfl_xor_sync(~0u, squares, d);
    const float own = sum / share_size(share.warp);
    if (share.first % 8 == 0)
      moments[share.warp][4 * layer + share.token] = make_float2(own + origin, squares - sum * own);
  }
}

// The same on the tensor cores: tokens times themselves and times one. Returns false, having stored nothing, when some
// mean is so far from zero that float32 would lose digits of the squares about it.
__device__ __forceinline__ bool quick_share_moments(const uint4* x, float2 (*moments)[TOKENS], const Share& share) {
  const unsigned lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, ones = 0x3f803f80u;
  float d[EIGHTS][4] = {};             // tokens g and 2 t or 2 t + 1; one and those
#pragma unroll
  for (int i = 0; i < SHARE * 2 * EIGHTS; i++) {
    const unsigned half = i / EIGHTS, j = i % EIGHTS;
    if (!share.has(half / 2)) continue;
    const uint4 v = x[(8 * j + g) % TOKENS * (PITCH / 16) + swizzle(8 * SHARE * share.warp + 4 * half + t)];
    mma(d[j], v.x, ones, v.y, ones, v.x, v.y);
    mma(d[j], v.z, ones, v.w, ones, v.z, v.w);
  }
  const float count = share_size(share.warp);
  const bool mine = t == g / 2;
  bool far = false;
  float2 own[EIGHTS];
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) {
    const float sum = g & 1 ? d[j][3] : d[j][2], squares = g & 1 ? d[j][1] : d[j][0];
    own[j].x = sum / count, own[j].y = squares - sum * own[j].x;
    far |= mine && own[j].x * sum > 16.f * own[j].y;
  }
  if (__any_sync(~0u, far)) return false;
#pragma unroll
  for (int j = 0; j < EIGHTS; j++)
    if (mine && 8 * j + g < TOKENS) moments[share.warp][8 * j + g] = own[j];
  return true;
}

// Mean and 1 / deviation of a thread's tokens: the moments of all warps' shares put together.
__device__ __forceinline__ void normalise(const Rowwise& p, const uint4* x, float2 (*moments)[TOKENS],
                                          const Share& share, float (&mean)[LAYERS], float (&deviation)[LAYERS]) {
  const unsigned i0 = share.first % 8;
  __syncwarp();                        // a warp reads only what its own lanes have loaded
  if (share_size(share.warp) > 0 && !quick_share_moments(x, moments, share)) share_moments(x, moments, share);
  __syncthreads();
#pragma unroll
  for (int layer = 0; layer < LAYERS; layer++) {
    float sum = 0.f, squares = 0.f;
    float2 part[(WARPS + 7) / 8];
#pragma unroll
    for (unsigned i = 0; i < WARPS; i += 8)
      if (i + i0 < WARPS && share_size(i + i0) > 0) {
        part[i / 8] = moments[i + i0][4 * layer + share.token];
        sum = fmaf(share_size(i + i0), part[i / 8].x, sum);
      }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
    mean[layer] = sum * (1.f / N);
#pragma unroll
    for (unsigned i = 0; i < WARPS; i += 8)
      if (i + i0 < WARPS && share_size(i + i0) > 0) {
        const float off = part[i / 8].x - mean[layer];
        squares += fmaf(share_size(i + i0) * off, off, part[i / 8].y);
      }
#pragma unroll
    for (int d = 1; d < 8; d *= 2) squares += __shfl_xor_sync(~0u, squares, d);
    deviation[layer] = rsqrtf(squares * (1.f / N) + p.epsilon);
  }
}

// X as it enters the product: what precedes, then signs.
__device__ __forceinline__ void prepare(const Rowwise& p, uint4* x, float2 (*moments)[TOKENS], const Share& share,
                                        int base) {
  float mean[LAYERS] = {}, deviation[LAYERS] = {};
  long long image[LAYERS] = {};
  if (PRE == 1) {
    normalise(p, x, moments, share, mean, deviation);
#pragma unroll
    for (int layer = 0; layer < LAYERS; layer++) {
      mean[layer] *= -deviation[layer];
      // With ONE_IMAGE no round meets two images.
      image[layer] = layer && ONE_IMAGE ? image[0]
                     : min(base + 4 * layer + (int)share.token, p.m - 1) / p.image_tokens * p.modulation_stride;
    }
  }
#pragma unroll
  for (int i = 0; i < SHARE; i++) {
    if (!share.has(i)) continue;
    const uint4 flip = p.flips[share.chunk(i)];
#pragma unroll
    for (int layer = 0; layer < LAYERS; layer++) {
      uint4* const at = x + (4 * layer + share.token) * (PITCH / 16) + share.at(i);
      const uint4 v = *at;
      uint4 out, scale, shift;
      if (PRE == 1) scale = p.scale[image[layer] + share.chunk(i)], shift = p.shift[image[layer] + share.chunk(i)];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float a = low_half((&v.x)[j]), b = high_half((&v.x)[j]);
        if (PRE == 1) {
          const unsigned s = (&scale.x)[j], o = (&shift.x)[j];
          a = fmaf(fmaf(a, deviation[layer], mean[layer]), 1.f + low_half(s), low_half(o));
          b = fmaf(fmaf(b, deviation[layer], mean[layer]), 1.f + high_half(s), high_half(o));
        }
        if (PRE == 2) a = gelu(a), b = gelu(b);
        (&out.x)[j] = (PRE ? token_pair(a, b) : (&v.x)[j]) ^ (&flip.x)[j];
      }
      *at = out;
    }
  }
}
