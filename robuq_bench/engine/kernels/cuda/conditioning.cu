// The conditioning vectors of a batch: timestep and label embedding, in float32. One warp an output.
//
// Macros: WIDTH (a multiple of 128), WAVES = channels of the time embedding (a multiple of 128), IMAGES = of one round,
// WARPS of a block.

struct Embed {
  const float* time;              // [batch]
  const long long* labels;        // [batch]
  const float* frequencies;       // [WAVES / 2]
  const float4* first;            // [WIDTH][WAVES]
  const float* bias;              // [WIDTH]
  const float4* second;           // [WIDTH][WIDTH]
  const float* embedding;         // [rows][WIDTH], the second linear's bias in it; the last row is for wrong labels
  float* hidden;                  // [batch][WIDTH]
  float* out;                     // [batch][WIDTH]
  int batch, rows;
};

__device__ __forceinline__ float silu(float v) { return v / (1.f + __expf(-v)); }

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

__device__ __forceinline__ void start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// hidden = silu(first [cos, sin](time * frequencies) + bias)
extern "C" __global__ void __launch_bounds__(WARPS * 32) embed_time(const __grid_constant__ Embed p) {
  __shared__ float4 waves[IMAGES][WAVES / 4];
  const int lane = threadIdx.x % 32, channel = blockIdx.x * WARPS + threadIdx.x / 32;
  float4 weight[WAVES / 128];
#pragma unroll
  for (int i = 0; i < WAVES / 128; i++) weight[i] = p.first[channel * (WAVES / 4) + 32 * i + lane];
  const float bias = p.bias[channel];
  start();
  for (int first = 0; first < p.batch; first += IMAGES) {
    const int images = min(IMAGES, p.batch - first);
    __syncthreads();
    for (int i = threadIdx.x; i < images * (WAVES / 2); i += WARPS * 32) {
      const int image = i / (WAVES / 2), j = i % (WAVES / 2);
      float s, c;
      sincosf(p.time[first + image] * p.frequencies[j], &s, &c);
      ((float*)waves[image])[j] = c, ((float*)waves[image])[WAVES / 2 + j] = s;
    }
    __syncthreads();
    for (int image = 0; image < images; image++) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < WAVES / 128; i++) sum = dot(weight[i], waves[image][32 * i + lane], sum);
      sum = warp_sum(sum) + bias;
      if (lane == 0) p.hidden[(first + image) * WIDTH + channel] = silu(sum);
    }
  }
}

// out = silu(second hidden + embedding[label])
extern "C" __global__ void __launch_bounds__(WARPS * 32) embed_label(const __grid_constant__ Embed p) {
  const int lane = threadIdx.x % 32, channel = blockIdx.x * WARPS + threadIdx.x / 32;
  float4 weight[WIDTH / 128];
#pragma unroll
  for (int i = 0; i < WIDTH / 128; i++) weight[i] = p.second[(long long)channel * (WIDTH / 4) + 32 * i + lane];
  start();
  for (int image = 0; image < p.batch; image++) {
    const long long label = p.labels[image], row = label < 0 || label >= p.rows ? p.rows - 1 : label;
    const float embedding = p.embedding[row * WIDTH + channel];
    const float4* const hidden = (const float4*)(p.hidden + image * WIDTH) + lane;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < WIDTH / 128; i++) sum = dot(weight[i], hidden[32 * i], sum);
    sum = warp_sum(sum) + embedding;
    if (lane == 0) p.out[image * WIDTH + channel] = silu(sum);
  }
}
