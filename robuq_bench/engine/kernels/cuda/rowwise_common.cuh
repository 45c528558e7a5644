// Row-wise kernels: one pass over the tokens, (LayerNorm and modulate | GELU | nothing) -> 16 bits -> random signs ->
// Hadamard -> scale of the token -> quantise -> bit planes in the layout of the GEMM, with the code sum and the
// low-rank down-projection on the way.
//
// A token [N] is seen as X [R, C]; the rotation is Y = mix^T X H_C * norm with any R x R matrix of small integers (a
// Hadamard matrix for the full rotation, the identity for rotation in blocks of C). Both products run on the tensor
// cores: rowwise_mma.cu for any width and sm_80 on, rowwise_wgmma.cu for Hopper and R = 36. What LayerNorm and
// modulation make is rounded to fp16 once (11 bits; it is of moderate size), GELU to bf16; the first product is exact.
//
// Macros of both: R, C, BLOCKS (of a multiprocessor), BITS, RANK, CENTER, MIDTREAD = 0 | 1, PRE = 0 nothing |
// 1 LayerNorm and modulate | 2 GELU(tanh).

struct Rowwise {
  const uint4* x;                 // [M][N] bf16
  const uint4* scale;             // rows of N bf16, modulation_stride apart, each for image_tokens tokens
  const uint4* shift;             // the same
  const float* mix;               // [R][R]
  const uint4* flips;             // [N] 16 bits: the sign bit where the channel is negated
  const uint4* down;              // [N / 32][2][32] mma fragments of the down-projection (see rotation.py)
  unsigned char* planes;
  int* code_sum;                  // [M]
  float* step;                    // [M]
  float* offset;                  // [M], with CENTER
  unsigned short* low;            // [M][16] bf16, with RANK
  uint4* cleared;                 // what the product after this one adds its sums to; `clears` times 16 bytes
  int m, image_tokens, clears;
  int settled;                    // scale and shift are there before the kernel before has ended
  long long modulation_stride;    // in 16 bytes
  float norm, unscale, cell, epsilon;  // norm = 1 / unscale; step = cell * sum|Y|
};

// Hopper may launch a kernel while the one before it ends; nothing that one wrote is touched before this.
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void clear_sums(const Rowwise& p) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.clears; i += gridDim.x * blockDim.x)
    p.cleared[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Tokens as they enter the products: pairs of fp16 or bf16.
#define NORMAL (PRE == 1)
constexpr unsigned ONES = NORMAL ? 0x3c003c00u : 0x3f803f80u;

__device__ __forceinline__ unsigned token_pair(float low, float high) {
  unsigned pair;
#if NORMAL
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  pair = bf16_pair(low, high);
#endif
  return pair;
}

__device__ __forceinline__ float gelu(float x) {
  // x sigmoid(2 u): the codes must not depend on an approximate tanh.
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * (-2.3022082f - 0.10294324f * x * x)));  // exp(-2 u)
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.f + e));
  return x * r;
}

__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same for tokens.
__device__ __forceinline__ void mma_tokens(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                           unsigned b0, unsigned b1) {
#if NORMAL
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  mma(d, a0, a1, a2, a3, b0, b1);
#endif
}

// Sums over the lanes that differ in bits of 2 TOP - 1, of COUNT numbers at once: a lane has that of number
// lane % (2 TOP) / (2 TOP / COUNT).
template <int COUNT, int TOP, class T>
__device__ __forceinline__ T fold(const T (&v)[COUNT], unsigned lane) {
  if constexpr (COUNT == 1) {
    T sum = v[0];
#pragma unroll
    for (int d = TOP; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
  } else {
    const bool upper = lane & TOP;
    T half[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++)
      half[i] = (upper ? v[i + COUNT / 2] : v[i]) + __shfl_xor_sync(~0u, upper ? v[i] : v[i + COUNT / 2], TOP);
    return fold<COUNT / 2, TOP / 2>(half, lane);
  }
}
