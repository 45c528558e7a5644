// What the two Hopper kernels share: wgmma operands, bulk copies and barriers.

__device__ __forceinline__ unsigned long long descriptor(unsigned at, unsigned along_k) {
  // Start, stride between the two 16-byte blocks along K, stride between groups of 8 rows: all in 16-byte steps.
  return (unsigned long long)(at >> 4) | (unsigned long long)(along_k >> 4) << 16 | 8ull << 32;
}

__device__ __forceinline__ void bulk_copy(unsigned to, const void* from, int bytes, unsigned barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

__device__ __forceinline__ void start_barrier(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void expect(unsigned barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait(unsigned barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@done bra over;\nbra again;\n"
      "over:\n}" ::"r"(barrier), "r"(parity) : "memory");
}
