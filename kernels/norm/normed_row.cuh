// SPDX-License-Identifier: Apache-2.0
// The norm of one row that lanes of a CTA or cluster hold, 8 values each: the sum of squares in its
// one order, and the outputs. Shared by every kernel that ends with a norm, so that all give the
// same bits.
#pragma once

#include <cstdint>

#include "kernels/norm/norm.h"
#include "kernels/norm/row.cuh"

namespace r1d::kernels {

inline constexpr int kVector = 8;
inline constexpr int kGroup = 128;
inline constexpr int kGroupLanes = kGroup / kVector;
inline constexpr int kMaxCols = 32768;  // of the vector form: 512 threads of 8 vectors
inline constexpr int kMaxGroups = kMaxCols / kGroup;

// Activations pass L1 by, which keeps the weight.
__device__ __forceinline__ uint4 load_row(const __nv_bfloat16* from) {
  return __ldcg(reinterpret_cast<const uint4*>(from));
}

// The square sums of a row's groups, which all CTAs of its cluster need. They are sent by stores
// that the receiver counts: a cluster barrier behind plain stores would have to be a release, which
// waits for everything that the CTA has stored so far, in other GPUs' memory too.
struct RowSums {
  float group[kMaxGroups];
  uint64_t all;  // a barrier: the sums of all groups are here
};

// By all threads, ahead of the dependency wait. Sums may be sent behind await_cluster().
__device__ __forceinline__ void open_row_sums(RowSums& sums, int cluster, int groups) {
#ifdef R1D_SM90
  if (cluster == 1) return;
  if (threadIdx.x == 0) {
    mbarrier_init(&sums.all, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&sums.all, static_cast<uint32_t>(groups) * sizeof(float));
  }
  __syncwarp();
  cluster_arrive_relaxed();
#endif
}
__device__ __forceinline__ void await_cluster(int cluster) {
#ifdef R1D_SM90
  if (cluster > 1) cluster_wait();
#endif
}
// By the lanes of group `group`, each of which has its sum. A group is sent once.
__device__ __forceinline__ void send_row_sum(RowSums& sums, int cluster, int group, float sum) {
  const int lane = static_cast<int>(threadIdx.x) % kGroupLanes;
  if (cluster == 1) {
    if (lane == 0) sums.group[group] = sum;
    return;
  }
#ifdef R1D_SM90
  if (lane >= cluster) return;
  cluster_store_async(cluster_address(smem_address(&sums.group[group]), lane),
                      sum,
                      cluster_address(smem_address(&sums.all), lane));
#endif
}
// By all threads: until the sums of all groups are here. A CTA that has them has also been left
// alone by the others, so it may end.
__device__ __forceinline__ void await_row_sums(RowSums& sums, int cluster) {
  if (cluster == 1) {
    __syncthreads();
    return;
  }
#ifdef R1D_SM90
  mbarrier_wait(&sums.all, 0);
#endif
}

__device__ __forceinline__ float row_rsqrt(const float* group_sums,
                                           int groups,
                                           int64_t cols,
                                           float eps) {
  float sum = 0;
  for (int g = threadIdx.x % 32; g < groups; g += 32) sum += group_sums[g];
  return rsqrtf(warp_sum(sum) / static_cast<float>(cols) + eps);
}

__device__ __forceinline__ float square_sum(const float (&v)[kVector]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum = fmaf(v[i], v[i], sum);
  return half_warp_sum(sum);
}

// Stores vector `vector` of a normed row. All 32 lanes call it, `live` or not, for the group's
// maximum.
__device__ __forceinline__ void store_normed(
    const float (&v)[kVector], const NormOutput& out, int64_t token, int vector, bool live) {
  const uint4 bits = pack_bf16(v);
  if (out.bf16 != nullptr && live) {
    *reinterpret_cast<uint4*>(out.bf16 + token * out.stride + vector * kVector) = bits;
  }
  const QuantizedRows& q = out.quantized;
  if (q.data == nullptr) return;
  float rounded[kVector];
  unpack_bf16(bits, rounded);
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, fabsf(rounded[i]));
  largest = half_warp_max(largest);
  const float scale = largest > 0 ? __fdiv_rn(largest, 448.F) : 1.F;
  if (!live) return;
  *reinterpret_cast<uint2*>(q.data + token * q.cols + vector * kVector) = pack_e4m3(rounded, scale);
  if (vector % kGroupLanes == 0) q.scale[vector / kGroupLanes * q.scale_stride + token] = scale;
}

}  // namespace r1d::kernels
