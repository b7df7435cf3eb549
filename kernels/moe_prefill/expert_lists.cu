// SPDX-License-Identifier: Apache-2.0
// Problem   stable sort of T k (token, slot) pairs by local expert, and the row tiles of the
// grouped
//           products.
// Layout    experts [T, k] i32; lists as moe_prefill.h says.
// Bound     latency: 4 bytes read and 8 written a pair (0.8 MB at T = 8192, k = 8).
// Launch    one cluster of 8 CTAs x 1024 threads. Warp w of the cluster's 256 owns a contiguous
//           range of pairs. It counts its range per expert and leaves each pair's rank in pair_row;
//           prefix sums over experts, CTAs (through distributed shared memory) and warps give its
//           first row of each expert; it walks the range again and writes.
// Numerics  integers; the order is that of the pairs, whatever the timing.
#include <algorithm>

#include "kernels/common/ptx.cuh"
#include "kernels/moe_prefill/moe_prefill.h"

namespace r1d::kernels {
namespace {

constexpr int kCluster = 8;
constexpr int kWarps = 32;
constexpr int kExperts = 256;

#ifdef R1D_SM90

struct ListsShared {
  int32_t rows[kWarps][kExperts];  // counts, then the first row of each warp and expert
  int32_t totals[kExperts];        // of this CTA
  int32_t scan[8];
  int32_t full_tiles;  // wide ones with more than 64 rows, of all experts
};

// Exclusive prefix sum over the first 256 threads of a block of 1024; every thread calls it.
__device__ __forceinline__ int32_t prefix_256(int32_t value, int32_t* scan) {
  const int32_t lane = threadIdx.x % 32;
  const int32_t warp = threadIdx.x / 32;
  int32_t inclusive = value;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int32_t below = __shfl_up_sync(~0U, inclusive, d);
    if (lane >= d) inclusive += below;
  }
  __syncthreads();  // `scan` may still be read from the call before
  if (warp < 8 && lane == 31) scan[warp] = inclusive;
  __syncthreads();
  int32_t before = 0;
  for (int32_t w = 0; w < min(warp, 8); ++w) before += scan[w];
  return before + inclusive - value;
}

__device__ __forceinline__ int32_t remote_load(const int32_t* address, uint32_t rank) {
  int32_t value;
  asm volatile("ld.shared::cluster.s32 %0, [%1];"
               : "=r"(value)
               : "r"(cluster_address(smem_address(address), rank))
               : "memory");
  return value;
}

#endif

__global__ void __launch_bounds__(1024, 1) expert_lists(const int32_t* experts,
                                                        int32_t pairs,
                                                        int32_t first_expert,
                                                        int32_t num_local,
                                                        PairLists lists) {
#ifdef R1D_SM90
  __shared__ ListsShared shared;
  const int32_t rank = cluster_rank();
  const int32_t thread = threadIdx.x;
  const int32_t warp = thread / 32;
  const int32_t lane = thread % 32;
  for (int32_t i = thread; i < kWarps * kExperts; i += 1024) (&shared.rows[0][0])[i] = 0;
  grid_dependency_wait();
  grid_launch_dependents();
  __syncthreads();

  // ---- count
  const int32_t each = (pairs + kCluster * kWarps * 32 - 1) / (kCluster * kWarps * 32) * 32;
  const int32_t begin = min((rank * kWarps + warp) * each, pairs);
  const int32_t end = min(begin + each, pairs);
  // The local expert of pair i, or -1.
  const auto local_expert = [&](int32_t i) {
    if (i >= end) return -1;
    const int32_t e = experts[i] - first_expert;
    return experts[i] >= 0 && e >= 0 && e < num_local ? e : -1;
  };
  int32_t* const rows = shared.rows[warp];
#pragma unroll 4
  for (int32_t i = begin; i < end; i += 32) {
    const int32_t e = local_expert(i + lane);
    const uint32_t same = __match_any_sync(~0U, e);
    const int32_t rank_in_range = e < 0 ? -1 : rows[e] + __popc(same & ((1U << lane) - 1));
    __syncwarp();
    if (e >= 0 && lane == __ffs(same) - 1) rows[e] += __popc(same);
    if (i + lane < end) lists.pair_row[i + lane] = rank_in_range;
    __syncwarp();
  }
  __syncthreads();

  // ---- prefix sums: warps, CTAs, experts
  if (thread < kExperts) {
    int32_t sum = 0;
    for (int32_t w = 0; w < kWarps; ++w) {
      const int32_t count = shared.rows[w][thread];
      shared.rows[w][thread] = sum;
      sum += count;
    }
    shared.totals[thread] = sum;
  }
  cluster_arrive();
  cluster_wait();
  int32_t before = 0;  // this expert's pairs of lower CTAs
  int32_t total = 0;
  if (thread < kExperts) {
    for (int32_t r = 0; r < kCluster; ++r) {
      const int32_t count = remote_load(&shared.totals[thread], r);
      before += r < rank ? count : 0;
      total += count;
    }
  }
  cluster_arrive();  // waited for at the end: a CTA's totals outlive their readers
  const int32_t tiles = (total + kMoeTileRows - 1) / kMoeTileRows;
  const int32_t first_row = prefix_256(total, shared.scan);
  const int32_t first_tile = prefix_256(tiles, shared.scan);
  // Wide tiles: what is left behind the last full one makes a small one.
  const int32_t full = (total + kMoeWideRows / 2 - 1) / kMoeWideRows;
  const int32_t small = total > full * kMoeWideRows ? 1 : 0;
  const int32_t first_full = prefix_256(full, shared.scan);
  if (thread == kExperts - 1) shared.full_tiles = first_full + full;
  const int32_t first_small = prefix_256(small, shared.scan);
  if (thread < kExperts) {
    for (int32_t w = 0; w < kWarps; ++w) shared.rows[w][thread] += first_row + before;
    // The CTAs share the tiles.
    for (int32_t m = rank; m < tiles; m += kCluster) {
      const int32_t row = m * kMoeTileRows;
      reinterpret_cast<int4*>(lists.tiles)[first_tile + m] =
          make_int4(thread, first_row + row, min(kMoeTileRows, total - row), 0);
    }
    for (int32_t m = rank; m < full + small; m += kCluster) {
      const int32_t row = m * kMoeWideRows;
      const int32_t place = m < full ? first_full + m : shared.full_tiles + first_small;
      reinterpret_cast<int4*>(lists.wide_tiles)[place] =
          make_int4(thread, first_row + row, min(kMoeWideRows, total - row), 0);
    }
    if (rank == 0 && thread == kExperts - 1) {
      lists.totals[0] = first_tile + tiles;
      lists.totals[1] = first_row + total;
      lists.totals[2] = shared.full_tiles + first_small + small;
    }
  }
  __syncthreads();

  // ---- write
#pragma unroll 8
  for (int32_t i = begin + lane; i < end; i += 32) {
    const int32_t e = local_expert(i);
    if (e < 0) continue;
    const int32_t row = rows[e] + lists.pair_row[i];
    lists.row_pair[row] = i;
    lists.pair_row[i] = row;
  }
  cluster_wait();
#endif
}

}  // namespace

int64_t moe_max_tiles(int64_t tokens, int32_t k, int32_t num_local) {
  const int64_t pairs = tokens * k;
  return std::min(pairs, pairs / kMoeTileRows + num_local);
}

int64_t moe_max_wide_tiles(int64_t tokens, int32_t k, int32_t num_local) {
  const int64_t pairs = tokens * k;
  return std::min(pairs, pairs / kMoeWideRows + num_local);
}

cudaError_t moe_expert_lists(const int32_t* experts,
                             int32_t tokens,
                             int32_t k,
                             int32_t first_expert,
                             int32_t num_local,
                             const PairLists& lists,
                             const Launch& launch) {
  if (tokens <= 0) return cudaSuccess;
  const bool served = k > 0 && int64_t{tokens} * k < 1 << 24 && num_local > 0 &&
                      num_local <= kExperts && first_expert >= 0;
  if (!served) return cudaErrorInvalidValue;
  const Grid grid{.blocks = dim3(kCluster), .threads = dim3(1024), .cluster = kCluster};
  return enqueue(expert_lists, grid, launch, experts, tokens * k, first_expert, num_local, lists);
}

}  // namespace r1d::kernels
