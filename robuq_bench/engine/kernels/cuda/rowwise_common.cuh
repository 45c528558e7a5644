// One pass over the tokens: (LayerNorm and modulate | GELU | nothing) -> random signs -> Hadamard -> scale of the token
// -> quantise -> bit planes in the layout of the GEMM, with the code sum and the low-rank down-projection on the way.
//
// A token [N] is seen as X [R, C]; the rotation is Y = mix^T X H_C * norm with any R x R matrix of small integers (a
// Hadamard matrix for the full rotation, the identity for rotation in blocks of C). Both products run on the tensor
// cores, without a shuffle between them, because a product's accumulators lie as the next one's operand:
//   rows       mix^T X: the constant is operand A; X comes from shared memory by ldmatrix. bf16 is exact when nothing
//              precedes; otherwise X is split in two bf16 halves, 16 bits of it in all
//   butterflies over column bits 3 .. log2(C) - 2, which a thread holds in different registers
//   columns    the other four bits of the column, H_16 as operand B, the float32 sums split in two bf16 halves
// A warp owns 16 rows of Y of one token. What R leaves over 16 is stacked: four tokens' last four rows fill one warp.
//
// Macros: R, C = 32 | 64 | 128, LAYERS (of four tokens that a block does at a time, 64 / C to 128 / C), SLOT (rows that
// a token takes of a stacked warp: 0, 4, 8 or 16, at least R % 16), BLOCKS (of a multiprocessor), BITS, RANK, CENTER,
// MIDTREAD = 0 | 1, PRE = 0 nothing | 1 LayerNorm and modulate | 2 GELU(tanh), ONE_IMAGE = 1 image_tokens is a multiple
// of TOKENS.

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
  int m, image_tokens;
  long long modulation_stride;    // in 16 bytes
  float norm, unscale, cell, epsilon;  // norm = 1 / unscale; step = cell * sum|Y|
};

constexpr int N = R * C, UNITS = N / 128, CHUNKS = N / 8;  // a chunk is 8 channels, 16 bytes of bf16
constexpr int FULL = R / 16;                               // tiles of 16 rows
constexpr int SPAN = SLOT ? SLOT : 1;                      // of a stacked warp's rows, a token's
constexpr int STACK = SLOT ? 16 / SLOT : 1;
constexpr int TOKENS = 4 * LAYERS;                         // that a block does at a time
constexpr int PLAIN = 4 * FULL, WARPS = PLAIN + SLOT / 4, THREADS = 32 * WARPS;
constexpr int DOWN_WARPS = FULL ? PLAIN : WARPS;           // a stacked warp is busy with several tokens' X
constexpr int PARTS = FULL + SLOT / 4;                     // sums of warps that make up a token's
constexpr int GROUPS = (R + 7) / 8;                        // of 8 rows of X, half the depth of an mma
constexpr int TILES = C / 8, HALF = TILES / 2;             // n8 tiles of a warp
constexpr int HALVES = PRE ? 2 : 1, EIGHTS = (TOKENS + 7) / 8;
constexpr int PITCH = N * 2 + 64;                          // bytes of a token; 64 spread the banks
constexpr int PIECE = C / 4;                               // channels of a row that a thread ends with
constexpr int WORDS = LAYERS * 2 * PIECE / 32;             // of a plane that a thread makes
constexpr unsigned PIECES = 32 / PIECE;                    // in a word
constexpr int SHARE = (N / 64 + WARPS - 1) / WARPS;        // chunks of a token that a thread loads and prepares
static_assert(N % 128 == 0 && R <= 48 && R % 16 <= SLOT && WORDS > 0, "width");

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// The pair as bf16, and what that leaves over as another.
__device__ __forceinline__ unsigned split(float low, float high, unsigned& rest) {
  const unsigned pair = bf16_pair(low, high);
  rest = bf16_pair(low - low_half(pair), high - high_half(pair));
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

__device__ __forceinline__ void mma_half(float (&d)[4], unsigned a0, unsigned a1, unsigned b0) {  // k = 8
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ void load_matrices(unsigned (&b)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(address));
}

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Where a chunk of a token lies: its place among the 8 of a line of 128 bytes is permuted, so that 8 rows of one column
// of chunks are in different banks.
__device__ __forceinline__ unsigned key(unsigned line) { return (C == 128 ? line / 2 : line) & (C == 32 ? 3 : 7); }
__device__ __forceinline__ unsigned swizzle(unsigned chunk) { return chunk ^ key(chunk / 8); }

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
