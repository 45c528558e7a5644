// LayerNorm, an image's own linear and the way back from patches to an image, in one pass: eight tokens a block.
//
// Channels are dealt out among warps by 32; a thread holds eight neighbouring channels of token lane / 4, which are its
// operands of two products. Macros: WIDTH (a multiple of 32), OUTPUTS (of a token, a multiple of 16), PATCH, WARPS.

struct Last {
  const uint4* tokens;            // [batch * side * side][WIDTH] bf16
  const uint4* weight;            // [batch][OUTPUTS][WIDTH] bf16
  const float* bias;              // [batch][OUTPUTS]
  float* out;                     // [batch][OUTPUTS / PATCH^2][side * PATCH][side * PATCH]
  int side;
  float epsilon;
};

constexpr int THREADS = 32 * WARPS, CHUNKS = WIDTH / 32, OWN = (CHUNKS + WARPS - 1) / WARPS, TILES = OUTPUTS / 16;
constexpr int CHANNELS = OUTPUTS / (PATCH * PATCH);

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Sum over all channels of a thread's token.
__device__ __forceinline__ float token_sum(float v, float (&parts)[WARPS][8]) {
  v += __shfl_xor_sync(~0u, v, 1), v += __shfl_xor_sync(~0u, v, 2);
  const int lane = threadIdx.x % 32;
  if (lane % 4 == 0) parts[threadIdx.x / 32][lane / 4] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) sum += parts[w][lane / 4];
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) last_linear(const __grid_constant__ Last p) {
  __shared__ float sums[WARPS][8], squares[WARPS][8], partial[WARPS][OUTPUTS][8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int tokens = p.side * p.side, first = blockIdx.x * 8, image = first / tokens;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
  uint4 x[OWN], weight[OWN][2 * TILES];  // rows g and g + 8 of each tile
  const uint4* const from = p.tokens + (long long)(first + g) * (WIDTH / 8) + t;
  const uint4* const factor = p.weight + ((long long)image * OUTPUTS + g) * (WIDTH / 8) + t;
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int chunk = warp + i * WARPS;
    const bool real = CHUNKS % WARPS == 0 || chunk < CHUNKS;
    x[i] = real ? from[chunk * 4] : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < 2 * TILES; j++)
      weight[i][j] = real ? factor[j * 8 * (WIDTH / 8) + chunk * 4] : make_uint4(0, 0, 0, 0);
  }
  float sum = 0.f, square = 0.f;
#pragma unroll
  for (int i = 0; i < OWN; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sum += low_half((&x[i].x)[j]) + high_half((&x[i].x)[j]);
  const float mean = token_sum(sum, sums) * (1.f / WIDTH);
#pragma unroll
  for (int i = 0; i < OWN; i++)
    if (CHUNKS % WARPS == 0 || warp + i * WARPS < CHUNKS)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float a = low_half((&x[i].x)[j]) - mean, b = high_half((&x[i].x)[j]) - mean;
        square = fmaf(a, a, fmaf(b, b, square));
      }
  const float scale = rsqrtf(token_sum(square, squares) * (1.f / WIDTH) + p.epsilon);
  float d[TILES][4] = {};
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    unsigned b[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(b[j])
          : "f"((high_half((&x[i].x)[j]) - mean) * scale), "f"((low_half((&x[i].x)[j]) - mean) * scale));
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const unsigned *const top = &weight[i][2 * tile].x + 2 * h, *const bottom = &weight[i][2 * tile + 1].x + 2 * h;
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[tile][0]), "+f"(d[tile][1]), "+f"(d[tile][2]), "+f"(d[tile][3])
            : "r"(top[0]), "r"(bottom[0]), "r"(top[1]), "r"(bottom[1]), "r"(b[2 * h]), "r"(b[2 * h + 1]));
      }
  }
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++) partial[warp][16 * tile + g + i / 2 * 8][2 * t + i % 2] = d[tile][i];
  __syncthreads();
  for (int i = threadIdx.x; i < OUTPUTS * 8; i += THREADS) {
    const int token = i % 8, output = i / 8, place = (first + token) % tokens;
    float v = p.bias[image * OUTPUTS + output];
#pragma unroll
    for (int w = 0; w < WARPS; w++) v += partial[w][output][token];
    const int row = place / p.side * PATCH + output / CHANNELS / PATCH;
    const int column = place % p.side * PATCH + output / CHANNELS % PATCH;
    p.out[(((long long)image * CHANNELS + output % CHANNELS) * p.side * PATCH + row) * p.side * PATCH + column] = v;
  }
}
