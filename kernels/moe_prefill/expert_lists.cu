// SPDX-License-Identifier: Apache-2.0
// Problem   stable sort of T k (token, slot) pairs by local expert, and the row tiles of the
//           grouped products.
// Layout    experts [T, k] i32; lists as moe_prefill.h says.
// Bound     latency: 4 bytes read and 8 written a pair (0.8 MB at T = 8192, k = 8); two barriers of
//           a block, one of a cluster.
// Launch    up to 8 clusters of 8 CTAs x 512 threads, which do not wait for each other: each
//           cluster counts all pairs, so that it knows how many come before its own, and writes its
//           own. The pairs lie in pieces, one a CTA, and CTA r counts the pieces r, r + 8, .. of
//           all clusters; the counts meet through distributed shared memory. A warp owns a
//           contiguous part of its CTA's piece and ranks it by match.
// Numerics  integers; the order is that of the pairs, whatever the timing.
#include <algorithm>

#include "kernels/common/ptx.cuh"
#include "kernels/moe_prefill/moe_prefill.h"

namespace r1d::kernels {
namespace {

constexpr int kCluster = 8;
constexpr int kMostClusters = 8;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kExperts = 256;

#ifdef R1D_SM90

struct ListsShared {
  int32_t rows[kWarps][kExperts];  // of each warp: counts, then its next row
  int32_t earlier[kExperts];       // counted by this CTA: pairs of lower clusters
  int32_t later[kExperts];         // and of higher ones
  float4 counts[kExperts];         // integers for the cluster: earlier, own, all
  int32_t scan[kExperts / 32];
  int32_t full_tiles;  // wide ones with more than 64 rows, of all experts
};

// Exclusive prefix sum over the first 256 threads of a block; every thread calls it.
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
  if (warp < kExperts / 32 && lane == 31) scan[warp] = inclusive;
  __syncthreads();
  int32_t before = 0;
#pragma unroll
  for (int32_t w = 0; w < kExperts / 32; ++w) before += w < warp ? scan[w] : 0;
  return before + inclusive - value;
}

#endif

__global__ void __launch_bounds__(kThreads) expert_lists(const int32_t* experts,
                                                         int32_t pairs,
                                                         int32_t first_expert,
                                                         int32_t num_local,
                                                         int32_t each,
                                                         PairLists lists) {
#ifdef R1D_SM90
  __shared__ ListsShared shared;
  const int32_t rank = cluster_rank();
  const int32_t cluster = blockIdx.x / kCluster;
  const int32_t clusters = gridDim.x / kCluster;
  const int32_t thread = threadIdx.x;
  const int32_t warp = thread / 32;
  const int32_t lane = thread % 32;
  for (int32_t i = thread; i < kWarps * kExperts; i += kThreads) (&shared.rows[0][0])[i] = 0;
  if (thread < kExperts) shared.earlier[thread] = shared.later[thread] = 0;
  grid_dependency_wait();
  grid_launch_dependents();
  __syncthreads();

  // ---- count
  const int32_t piece = kWarps * each;
  // The local expert of pair i, or -1.
  const auto local_expert = [&](int32_t i) {
    if (i >= pairs) return -1;
    const int32_t id = experts[i];
    const int32_t e = id - first_expert;
    return id >= 0 && e >= 0 && e < num_local ? e : -1;
  };
  for (int32_t at = thread; at < piece; at += kThreads) {
    int32_t ids[kMostClusters];
#pragma unroll
    for (int32_t c = 0; c < kMostClusters; ++c) {
      ids[c] = c < clusters ? local_expert((c * kCluster + rank) * piece + at) : -1;
    }
    int32_t* const own = shared.rows[at / each];
#pragma unroll
    for (int32_t c = 0; c < kMostClusters; ++c) {
      int32_t* const counts = c < cluster ? shared.earlier : c == cluster ? own : shared.later;
      if (ids[c] >= 0) atomicAdd(counts + ids[c], 1);
    }
  }
  const int32_t begin = min((cluster * kCluster + rank) * piece + warp * each, pairs);
  const int32_t end = min(begin + each, pairs);
  int32_t next = begin + lane < end ? local_expert(begin + lane) : -1;  // arrives meanwhile
  __syncthreads();

  // ---- prefix sums: warps, CTAs and clusters, experts
  if (thread < kExperts) {
    int32_t sum = 0;
#pragma unroll
    for (int32_t w = 0; w < kWarps; ++w) {
      const int32_t count = shared.rows[w][thread];
      shared.rows[w][thread] = sum;
      sum += count;
    }
    const int32_t earlier = shared.earlier[thread];
    shared.counts[thread] = make_float4(__int_as_float(earlier),
                                        __int_as_float(sum),
                                        __int_as_float(earlier + sum + shared.later[thread]),
                                        0);
  }
  cluster_arrive();
  cluster_wait();
  int32_t before = 0;  // this expert's pairs ahead of the CTA's own
  int32_t total = 0;
  if (thread < kExperts) {
    float4 counts[kCluster];
#pragma unroll
    for (int32_t r = 0; r < kCluster; ++r) {
      counts[r] = cluster_load_float4(cluster_address(smem_address(&shared.counts[thread]), r));
    }
#pragma unroll
    for (int32_t r = 0; r < kCluster; ++r) {
      before += __float_as_int(counts[r].x) + (r < rank ? __float_as_int(counts[r].y) : 0);
      total += __float_as_int(counts[r].z);
    }
  }
  cluster_arrive();  // waited for at the end: a CTA's counts outlive their readers
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
#pragma unroll
    for (int32_t w = 0; w < kWarps; ++w) shared.rows[w][thread] += first_row + before;
    // All CTAs share the tiles.
    for (int32_t m = blockIdx.x; m < tiles; m += gridDim.x) {
      const int32_t row = m * kMoeTileRows;
      reinterpret_cast<int4*>(lists.tiles)[first_tile + m] =
          make_int4(thread, first_row + row, min(kMoeTileRows, total - row), 0);
    }
    for (int32_t m = blockIdx.x; m < full + small; m += gridDim.x) {
      const int32_t row = m * kMoeWideRows;
      const int32_t place = m < full ? first_full + m : shared.full_tiles + first_small;
      reinterpret_cast<int4*>(lists.wide_tiles)[place] =
          make_int4(thread, first_row + row, min(kMoeWideRows, total - row), 0);
    }
    if (blockIdx.x == 0 && thread == kExperts - 1) {
      lists.totals[0] = first_tile + tiles;
      lists.totals[1] = first_row + total;
      lists.totals[2] = shared.full_tiles + first_small + small;
    }
  }
  __syncthreads();

  // ---- write
  int32_t* const rows = shared.rows[warp];
  for (int32_t i = begin + lane; i - lane < end; i += 32) {
    const int32_t e = next;
    if (i - lane + 32 < end) next = i + 32 < end ? local_expert(i + 32) : -1;
    const uint32_t same = __match_any_sync(~0U, e);
    const uint32_t ahead = same & ((1U << lane) - 1);
    const int32_t row = e < 0 ? -1 : rows[e] + __popc(ahead);
    if (i < end) lists.pair_row[i] = row;
    if (e >= 0) lists.row_pair[row] = i;
    __syncwarp();
    if (e >= 0 && ahead == 0) rows[e] += __popc(same);
    __syncwarp();
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
  const int32_t pairs = tokens * k;
  constexpr int32_t kLeast = kCluster * kThreads;  // pairs of a cluster
  const int32_t clusters = std::min((pairs + kLeast - 1) / kLeast, kMostClusters);
  const int32_t each = (pairs + clusters * kLeast - 1) / (clusters * kLeast) * 32;  // of a warp
  const Grid grid{.blocks = dim3(static_cast<unsigned>(clusters * kCluster)),
                  .threads = dim3(kThreads),
                  .cluster = kCluster};
  return enqueue(expert_lists, grid, launch, experts, pairs, first_expert, num_local, each, lists);
}

}  // namespace r1d::kernels
