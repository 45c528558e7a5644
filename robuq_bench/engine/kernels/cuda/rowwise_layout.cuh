// Row-wise kernel with mma.sync: how the work is laid out.
//
// There is no shuffle between the two products, because the accumulators of one lie as the operand of the next:
//   rows       mix^T X: the constant is operand A; X comes from shared memory by ldmatrix
//   butterflies over column bits 3 .. log2(C) - 2, which a thread holds in different registers
//   columns    the other four bits of the column, H_16 as operand B, the float32 sums split in two bf16 halves
// A warp owns 16 rows of Y of one token. What R leaves over 16 is stacked: four tokens' last four rows fill one warp.
//
// More macros: C = 32 | 64 | 128, LAYERS (of four tokens that a block does at a time, 64 / C to 128 / C), SLOT (rows
// that a token takes of a stacked warp: 0, 4, 8 or 16, at least R % 16), ONE_IMAGE = 1 image_tokens is a multiple of
// TOKENS.

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
constexpr int EIGHTS = (TOKENS + 7) / 8;
constexpr int PITCH = N * 2 + 64;                          // bytes of a token; 64 spread the banks
constexpr int PIECE = C / 4;                               // channels of a row that a thread ends with
constexpr int WORDS = LAYERS * 2 * PIECE / 32;             // of a plane that a thread makes
constexpr unsigned PIECES = 32 / PIECE;                    // in a word
constexpr int SHARE = (N / 64 + WARPS - 1) / WARPS;        // chunks of a token that a thread loads and prepares
static_assert(N % 128 == 0 && R <= 48 && R % 16 <= SLOT && WORDS > 0, "width");

__device__ __forceinline__ void mma_half(float (&d)[4], unsigned a0, unsigned a1, unsigned b0) {  // of tokens, k = 8
#if NORMAL
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
#endif
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

// The pair as bf16, and what that leaves over as another.
__device__ __forceinline__ unsigned split(float low, float high, unsigned& rest) {
  const unsigned pair = bf16_pair(low, high);
  rest = bf16_pair(low - low_half(pair), high - high_half(pair));
  return pair;
}
