// SPDX-License-Identifier: Apache-2.0
// What the decode kernels of both cache formats share: one block an SM, two math warpgroups, a warp
// that loads the cache into a ring of slots, one that loads queries.
#pragma once

#include <cuda.h>

#include "kernels/common/ptx.cuh"
#include "kernels/common/wgmma.cuh"
#include "kernels/mla_decode/plan.cuh"

namespace r1d::kernels::mla {

constexpr int kSliceCols = 64;                       // one 128-byte swizzle row
constexpr int kSliceBytes = kPage * kSliceCols * 2;  // 8 KB
constexpr int kSlices = kRow / kSliceCols;           // of a bf16 row: rope first, then 8 of latent
constexpr int kGroupWarps = 4;
constexpr int kGroupThreads = 128;
constexpr int kMathThreads = 2 * kGroupThreads;
// With 64 columns the math groups need more registers than 320 threads could have each: there the
// loaders are a whole warpgroup, which gives its own away.
constexpr bool moves_registers(int columns) {
  return columns >= 64;
}
constexpr int threads_of(int columns) {
  return kMathThreads + (moves_registers(columns) ? kGroupThreads : 64);
}
// For the compiler: with 16 columns 128 registers suffice, which leaves mla_absorb_queries a place
// on the SM.
constexpr int bound_threads(int columns) {
  return columns == 16 ? 512 : threads_of(columns);
}
constexpr int kBarrierAll = 1;    // named barriers
constexpr int kBarrierGroup = 2;  // and 3
constexpr int kBarrierPair = 4;   // to 7: two warps with the same keys

struct Arguments {
  PlanView plan;
  const int32_t* block_ids;
  int32_t num_sequences;
  int32_t groups;
  int32_t heads;
  int32_t block_size;
  WorkspaceView out;
};

// mla_decode for a cache of e4m3 (mla_decode_fp8.cu).
cudaError_t decode_fp8(const CUtensorMap& query_map,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const Arguments& args,
                       const MlaShape& shape,
                       const Launch& launch);

#ifdef R1D_SM90

// A place in the ring of slots; `parity` is that of the slot's current round.
template <int kSlots>
struct RingPlace {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ explicit RingPlace(int position)
      : slot(position % kSlots), parity(position / kSlots % 2) {}
  __device__ __forceinline__ RingPlace(int slot, uint32_t parity) : slot(slot), parity(parity) {}
  __device__ __forceinline__ RingPlace operator+(int steps) const {
    const bool wraps = slot + steps >= kSlots;
    return {wraps ? slot + steps - kSlots : slot + steps, wraps ? parity ^ 1 : parity};
  }
};

// The descriptor of a K-major operand under the 128-byte swizzle (wgmma.cuh): its low word once,
// then one addition an operand.
__device__ __forceinline__ uint32_t descriptor_word(const void* shared) {
  return static_cast<uint32_t>(wgmma_descriptor_k128(smem_address(shared)));
}
template <int kRowGroupBytes = 1024>  // between groups of 8 rows
__device__ __forceinline__ uint64_t descriptor(uint32_t word, int bytes) {
  constexpr uint32_t kHigh = (1U << 30) | (kRowGroupBytes >> 4);
  return (static_cast<uint64_t>(kHigh) << 32) | (word + static_cast<uint32_t>(bytes / 16));
}

// Each warp a part of them: in one warp, lanes with barriers of their own take turns.
template <int kWarps, typename Shared>
__device__ __forceinline__ void init_barriers(Shared& shared, int readers) {
  const int warp = __shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0);
  if (elect_one()) {
#pragma unroll
    for (int slot = 0; slot < Shared::kSlots; slot += kWarps) {
      if (slot + warp >= Shared::kSlots) break;
      mbarrier_init(&shared.full[slot + warp], 1);
      mbarrier_init(&shared.empty[slot + warp], readers);
    }
    if (warp == kWarps - 1) {
      mbarrier_init(&shared.queries_full, 1);
      mbarrier_init(&shared.queries_empty, 2 * kGroupWarps);
    }
    mbarrier_init_fence();
  }
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
// Stores two 8x8 matrices transposed; lanes 0..15 give the row addresses.
__device__ __forceinline__ void stmatrix_x2_trans(uint32_t address, uint32_t r0, uint32_t r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
               "r"(r0),
               "r"(r1)
               : "memory");
}
// The cache passes through L2 once.
__device__ __forceinline__ void tensor_load_2d_hint(
    void* to, const void* map, int32_t x, int32_t y, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(smem_address(to)),
      "l"(map),
      "r"(smem_address(barrier)),
      "r"(x),
      "r"(y),
      "l"(policy)
      : "memory");
}
__device__ __forceinline__ void tensor_load_4d_hint(void* to,
                                                    const void* map,
                                                    int32_t x,
                                                    int32_t y,
                                                    int32_t z,
                                                    int32_t w,
                                                    uint64_t* barrier,
                                                    uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(smem_address(to)),
      "l"(map),
      "r"(smem_address(barrier)),
      "r"(x),
      "r"(y),
      "r"(z),
      "r"(w),
      "l"(policy)
      : "memory");
}
// named_barrier; whether `condition` holds in any of its threads.
__device__ __forceinline__ bool named_barrier_any(uint32_t id, uint32_t threads, bool condition) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred mine, all;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "barrier.red.or.pred all, %1, %2, mine;\n"
      "selp.b32 %0, 1, 0, all;\n}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(condition))
      : "memory");
  return any != 0;
}
// Over the eight lanes that share a column.
__device__ __forceinline__ float column_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0U, x, 4));
  x = fmaxf(x, __shfl_xor_sync(~0U, x, 8));
  return fmaxf(x, __shfl_xor_sync(~0U, x, 16));
}
__device__ __forceinline__ float column_sum(float x) {
  x += __shfl_xor_sync(~0U, x, 4);
  x += __shfl_xor_sync(~0U, x, 8);
  return x + __shfl_xor_sync(~0U, x, 16);
}

// One thread: the queries of each item.
template <int kColumns, typename Shared, bool kDeterministic>
__device__ void load_queries(Shared& shared,
                             const CUtensorMap& query_map,
                             const Arguments& args,
                             Walk<kDeterministic> walk,
                             int group) {
  uint32_t parity = 1;
  while (walk.next()) {
    const int row = walk.sequence.query_begin * args.heads + group * kColumns;
    mbarrier_wait(&shared.queries_empty, parity);
    parity ^= 1;
    mbarrier_arrive_expect(&shared.queries_full, sizeof(shared.queries));
    for (int k = 0; k < kSlices; ++k) {
      const int column = k == 0 ? kLatent : (k - 1) * kSliceCols;
      tensor_load_2d(shared.queries[k], &query_map, column, row, &shared.queries_full);
    }
  }
}

#endif  // R1D_SM90

}  // namespace r1d::kernels::mla
