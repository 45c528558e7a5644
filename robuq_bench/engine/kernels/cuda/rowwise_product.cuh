// Row-wise kernel: the products on the tensor cores (rows and columns of the rotation, down-projection).

// d += A X for one token and all columns; `at` are a lane's addresses of rows 0 to 7 and of the last, short group.
__device__ __forceinline__ void contract_rows(float (&d)[TILES][4], const unsigned (&a)[GROUPS][2],
                                              const unsigned (&at)[2][2], unsigned x) {
  constexpr int LAST = GROUPS - 1, WIDE = C == 32 ? 1 : 2;  // quads of tiles whose sums are independent
#pragma unroll
  for (int quad = 0; quad < C / 32; quad += WIDE)
#pragma unroll
    for (int k = 0; k < GROUPS; k += 2) {
      unsigned top[WIDE][4], bottom[WIDE][4];
#pragma unroll
      for (int w = 0; w < WIDE; w++) {
        const unsigned to = x + (quad + w) / 2 * 128 + k * 16 * C;
        load_matrices(top[w], to + at[R % 8 && k == LAST][(quad + w) & 1]);
        if (k < LAST) load_matrices(bottom[w], to + 16 * C + at[R % 8 && k + 1 == LAST][(quad + w) & 1]);
      }
#pragma unroll
      for (int j = 0; j < 4 * WIDE; j++)
        if (k < LAST)
          mma_tokens(d[4 * quad + j], a[k][0], a[k][1], a[min(k + 1, LAST)][0], a[min(k + 1, LAST)][1],
                     top[j / 4][j % 4], bottom[j / 4][j % 4]);
        else
          mma_half(d[4 * quad + j], a[k][0], a[k][1], top[j / 4][j % 4]);
    }
}

// H_C over the columns. Tile j holds columns 8 j .. 8 j + 7 before. Afterwards d[j + u HALF][2 h + e] is row h, column
// e + 2 u + 4 (t & 1) + 8 j + C / 2 (t >> 1) for j < HALF.
__device__ __forceinline__ void contract_columns(float (&d)[TILES][4], const unsigned (&hadamard)[2][2]) {
#pragma unroll
  for (int bit = 1; bit < HALF; bit *= 2)
#pragma unroll
    for (int j = 0; j < TILES; j++)
      if (!(j & bit))
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float a = d[j][i], b = d[j | bit][i];
          d[j][i] = a + b, d[j | bit][i] = a - b;
        }
#pragma unroll
  for (int j = 0; j < HALF; j++) {
    unsigned high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* pair = &d[j + i / 2 * HALF][i % 2 * 2];
      high[i] = split(pair[0], pair[1], low[i]);
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
      float y[4] = {};
      mma(y, low[0], low[1], low[2], low[3], hadamard[u][0], hadamard[u][1]);
      mma(y, high[0], high[1], high[2], high[3], hadamard[u][0], hadamard[u][1]);
#pragma unroll
      for (int i = 0; i < 4; i++) d[j + u * HALF][i] = y[i];
    }
  }
}

// The low-rank branch's first factor times the tokens as they are before the rotation (see pack_down): a warp's share.
__device__ __forceinline__ void project_down(const Rowwise& p, const unsigned char* x, float* sums, unsigned warp,
                                             unsigned lane) {
  // Of wide tokens the matrix comes from L2, and is asked for well ahead.
  constexpr int STEPS = N / 32, DEPTH = C == 128 ? 6 : 2, TIMES = C == 128 ? 1 : 2;
  const unsigned g = lane >> 2, t = lane & 3;
  float low[2][EIGHTS][4] = {};        // rank g or g + 8, token 2 t or 2 t + 1 of eight; two sums that need not wait
#pragma unroll TIMES
  for (unsigned first = warp; first < STEPS; first += DEPTH * DOWN_WARPS) {
    uint4 a[DEPTH][2];
#pragma unroll
    for (int i = 0; i < DEPTH * 2; i++)
      if (STEPS % (DEPTH * DOWN_WARPS) == 0 || first + i / 2 * DOWN_WARPS < STEPS)
        a[i / 2][i % 2] = p.down[(first + i / 2 * DOWN_WARPS) * 64 + i % 2 * 32 + lane];
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
      if (STEPS % (DEPTH * DOWN_WARPS) == 0 || first + i * DOWN_WARPS < STEPS)
#pragma unroll
        for (int j = 0; j < EIGHTS; j++) {
          const unsigned chunk = 4 * (first + i * DOWN_WARPS) + t;
          const uint4 b = *(const uint4*)(x + (8 * j + g) % TOKENS * PITCH + swizzle(chunk) * 16);
          mma_tokens(low[i % 2][j], a[i][0].x, a[i][0].y, a[i][0].z, a[i][0].w, b.x, b.y);
          mma_tokens(low[i % 2][j], a[i][1].x, a[i][1].y, a[i][1].z, a[i][1].w, b.z, b.w);
        }
  }
#pragma unroll
  for (int i = 0; i < EIGHTS * 4; i++)
    if (2 * t < TOKENS)
      sums[(i / 4 * 8 + 2 * t + i % 2) * 16 + g + i % 4 / 2 * 8] = low[0][i / 4][i % 4] + low[1][i / 4][i % 4];
}
