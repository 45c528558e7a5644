// Softmax attention for Hopper, bf16 in and out, float32 sums: for the many images where memory rules.
//
// A block goes through its items, one of which is QUERIES queries of a head with all keys and values of the image. One
// thread asks for them, STAGES items ahead; two warpgroups take 64 queries at a time. Their scores are in registers,
// PART keys at once, and become, as weights, operand A of the product with the values as they lie.
// Everything comes in boxes of 128 rows by tensor map: channels 0 to 63 in rows of 128 bytes with that swizzle, and
// what a head of 72 has besides in rows of 16 bytes without one. Those 8 channels are half of a product's 16: the keys'
// are read twice (a stride of zero), the second time against zeros; the values' have a product of their own.
//
// Barriers are gemm_hopper.cuh's.
//
// Macros: HEADS, DIM = channels of a head (64 | 72), STAGES; TOKENS = of an image, QUERIES, PART: multiples of 128.

struct alignas(64) TensorMap { unsigned char bytes[128]; };

struct Attention {
  TensorMap head, rest;       // qkv [images * TOKENS][3][HEADS][DIM] bf16 in boxes of 128 rows by 64 or 8 channels
  unsigned short* out;        // [images * TOKENS][HEADS][DIM] bf16
  float scale;                // log2(e) / sqrt(DIM)
  int items;
};

constexpr int CHUNKS = DIM / 8, STEPS = (CHUNKS + 1) / 2, ROW = HEADS * DIM, BOX = 128;
constexpr int GROUPS = 2, WORKERS = 128 * GROUPS;  // warpgroups that multiply, and their threads
constexpr int TILES = TOKENS / QUERIES, ROUNDS = QUERIES / (64 * GROUPS);
// Boxes of a stage: queries, keys, values. First the swizzled parts of all stages, then the others.
constexpr int KEYS = QUERIES / BOX, VALUES = KEYS + TOKENS / BOX, BOXES = VALUES + TOKENS / BOX;
constexpr int HEAD = BOX * 128, REST = BOX * (CHUNKS - 8) * 16, RESTS_AT = STAGES * BOXES * HEAD;
static_assert((DIM == 64 || DIM == 72) && TOKENS % PART == 0 && PART % BOX == 0, "shape");
static_assert(ROUNDS * 64 * GROUPS == QUERIES && TILES * QUERIES == TOKENS, "items");

// The same in all lanes; the compiler is told so, and keeps descriptors in uniform registers.
__device__ __forceinline__ unsigned uniform(unsigned v) { return __shfl_sync(~0u, v, 0); }

__device__ __forceinline__ void fetch(unsigned to, const TensorMap& map, int channel, int row, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      ::"r"(to), "l"(&map), "r"(channel), "r"(row), "r"(barrier) : "memory");
}

// A wgmma operand of rows of 16 bytes in groups of 8: where it starts, the stride from 8 channels (of keys) or 8 rows
// (of values) to the next, which both come in twos, and the stride between groups of rows (of keys).
__device__ __forceinline__ unsigned long long plain(unsigned at, unsigned leading, unsigned stride) {
  return (unsigned long long)(at / 16 | leading / 16 << 16) | (unsigned long long)(stride / 16) << 32;
}

// One of rows of 128 bytes, swizzled; eight of them are 1024 bytes.
__device__ __forceinline__ unsigned long long swizzled(unsigned at) { return plain(at, 16, 1024) | 1ull << 62; }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all products but the last KEEP groups; `d` are sums of those waited for.
template <int KEEP, int COUNT>
__device__ __forceinline__ void end_products(float (&d)[COUNT]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(KEEP) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(d, i) FOUR(d, i), FOUR(d, i + 4), FOUR(d, i + 8), FOUR(d, i + 12)

// d [64 queries, 128 keys] = (add ? d : 0) + q k^T over 16 channels.
__device__ __forceinline__ void score_product(float (&d)[64], const unsigned (&q)[4], unsigned long long k, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16\n"
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,"
      "%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, add, 1, 1, 0;\n}"
      : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
      : "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3]), "l"(k), "r"(add));
}

// d [64 queries, 64 or 8 channels] = (add ? d : 0) + w v over 16 keys; v has its keys along rows, so it is transposed.
__device__ __forceinline__ void value_product(float* d, const unsigned (&w)[4], unsigned long long v, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16\n"
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}"
      : SIXTEEN(d, 0), SIXTEEN(d, 16)
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v), "r"(add));
}

__device__ __forceinline__ void rest_product(float* d, const unsigned (&w)[4], unsigned long long v, int add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %9, 0;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16\n"
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, add, 1, 1, 1;\n}"
      : FOUR(d, 0)
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v), "r"(add));
}

struct Item {
  int token, query, head;     // first token of the image, first query, head
  __device__ __forceinline__ Item(int item) {
    token = item / (TILES * HEADS) * TOKENS, query = token + item % TILES * QUERIES, head = item / TILES % HEADS;
  }
};

extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1) attention(const __grid_constant__ Attention p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ unsigned long long barriers[3 * STAGES];
  const unsigned address = (unsigned)__cvta_generic_to_shared(memory);
  const unsigned keys_in = (unsigned)__cvta_generic_to_shared(barriers);  // and the queries
  const unsigned values_in = keys_in + 8 * STAGES, empty = values_in + 8 * STAGES;
  const unsigned lane = threadIdx.x & 31, warp = uniform(threadIdx.x >> 5);
  if (threadIdx.x < STAGES) {
    start_barrier(keys_in + 8 * threadIdx.x, 1);
    start_barrier(values_in + 8 * threadIdx.x, 1);
    start_barrier(empty + 8 * threadIdx.x, 4 * GROUPS);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

  int slot = 0;
  if (warp >= 4 * GROUPS) {  // one thread of these works; the others only give their registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x != WORKERS) return;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    int parity = 1;
#pragma unroll 1
    for (int at = blockIdx.x; at < p.items; at += gridDim.x) {
      const Item item(at);
      auto ask = [&](int box, int which, int row, unsigned barrier) {
        const int place = slot * BOXES + box, channel = (which * HEADS + item.head) * DIM;
        fetch(address + place * HEAD, p.head, channel, row, barrier + slot * 8);
        if (REST) fetch(address + RESTS_AT + place * REST, p.rest, channel + 64, row, barrier + slot * 8);
      };
      wait(empty + slot * 8, parity);
      expect(keys_in + slot * 8, VALUES * (HEAD + REST));
      for (int i = 0; i < KEYS; i++) ask(i, 0, item.query + i * BOX, keys_in);
      for (int i = KEYS; i < VALUES; i++) ask(i, 1, item.token + (i - KEYS) * BOX, keys_in);
      expect(values_in + slot * 8, (BOXES - VALUES) * (HEAD + REST));
      for (int i = VALUES; i < BOXES; i++) ask(i, 2, item.token + (i - VALUES) * BOX, values_in);
      if (++slot == STAGES) slot = 0, parity ^= 1;
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  int parity = 0;
#pragma unroll 1
  for (int at = blockIdx.x; at < p.items; at += gridDim.x) {
    const Item item(at);
    const unsigned heads = uniform(address + slot * BOXES * HEAD);
    const unsigned rests = uniform(address + RESTS_AT + slot * BOXES * REST);
    wait(keys_in + slot * 8, parity);
#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++) {
      const unsigned row = round * 128 + warp * 16;  // first of the warp's 16 queries
      auto place = [&](unsigned chunk, unsigned line) {  // of 8 channels of one of them
        return chunk < 8 ? heads + (row + line) * 128 + (chunk ^ line % 8) * 16 : rests + (row + line) * 16;
      };
      unsigned q[STEPS][4];
#pragma unroll
      for (int k = 0; k < STEPS; k++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(q[k][0]), "=r"(q[k][1]), "=r"(q[k][2]), "=r"(q[k][3])
                     : "r"(place(min(2 * k + lane / 16, CHUNKS - 1), lane % 16)));
      if (CHUNKS % 2) q[STEPS - 1][2] = q[STEPS - 1][3] = 0;

      float most[2] = {-__int_as_float(0x7f800000), -__int_as_float(0x7f800000)}, sum[2] = {};  // of rows g and g + 8
      float result[DIM / 2];
#pragma unroll
      for (int part = 0; part < TOKENS; part += PART) {
        float score[PART / BOX][64];
        begin_products();
#pragma unroll
        for (int j = 0; j < PART / BOX; j++) {
          const int box = KEYS + part / BOX + j;
#pragma unroll
          for (int k = 0; k < STEPS; k++)
            score_product(score[j], q[k],
                          k < 4 ? swizzled(heads + box * HEAD + k * 32) : plain(rests + box * REST, 0, 128), k > 0);
          commit_products();
        }
        float top[2] = {most[0], most[1]};
#pragma unroll
        for (int j = 0; j < PART / BOX; j++) {
          if (j + 1 < PART / BOX)
            end_products<1>(score[j]);
          else
            end_products<0>(score[j]);
#pragma unroll
          for (int i = 0; i < 64; i += 2)
            top[i / 2 % 2] = fmaxf(top[i / 2 % 2], fmaxf(score[j][i], score[j][i + 1]));
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
          top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 1));
          top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 2));
          if (part) {  // what there is has been taken relative to a smaller number
            const float factor = power_of_two((most[h] - top[h]) * p.scale);
            sum[h] *= factor;
#pragma unroll
            for (int i = 2 * h; i < DIM / 2; i += 4) result[i] *= factor, result[i + 1] *= factor;
          }
          most[h] = top[h];
        }
        const float minus[2] = {-top[0] * p.scale, -top[1] * p.scale};
        if (part == 0) wait(values_in + slot * 8, parity);

        unsigned weight[PART / 16][4];
#pragma unroll
        for (int k = 0; k < PART / 16; k++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const float* const pair = score[k / 8] + k % 8 * 8 + 2 * i;
            const float a = power_of_two(fmaf(pair[0], p.scale, minus[i % 2]));
            const float b = power_of_two(fmaf(pair[1], p.scale, minus[i % 2]));
            sum[i % 2] += a + b;
            weight[k][i] = bf16_pair(a, b);
          }
          if (k % 4 < 3) continue;
          begin_products();  // of 64 keys, under which the next weights are made
#pragma unroll
          for (int n = k - 3; n <= k; n++) {
            const int box = VALUES + (part + n * 16) / BOX, line = n * 16 % BOX, add = part + n > 0;
            value_product(result, weight[n], swizzled(heads + box * HEAD + line * 128), add);
            if (REST) rest_product(result + 32, weight[n], plain(rests + box * REST + line * 16, 128, 128), add);
          }
          commit_products();
        }
        end_products<0>(result);
      }

#pragma unroll
      for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        const float whole = 1.f / sum[h];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)  // to where the warp's queries were, so that the rows can be stored whole
          asm volatile("st.shared.u32 [%0], %1;" ::"r"(place(c, lane / 4 + 8 * h) + lane % 4 * 4),
                       "r"(bf16_pair(whole * result[4 * c + 2 * h], whole * result[4 * c + 2 * h + 1])) : "memory");
      }
      __syncwarp();
      unsigned short* const to = p.out + (long long)(item.query + row) * ROW + item.head * DIM;
#pragma unroll
      for (unsigned i = lane; i < 16 * CHUNKS; i += 32)
        *(uint4*)(to + i / CHUNKS * ROW + i % CHUNKS * 8) =
            *(const uint4*)(memory + (place(i % CHUNKS, i / CHUNKS) - address));
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (lane == 0) arrive(empty + slot * 8);
    if (++slot == STAGES) slot = 0, parity ^= 1;
  }
}
