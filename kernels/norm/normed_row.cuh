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
