// SPDX-License-Identifier: Apache-2.0
// One 1x128 group held by 16 lanes, 8 values each: the arithmetic of layout.h's QuantizedRows, for
// every kernel that quantizes.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

namespace r1d::kernels {

struct QuantizedOctet {
  uint2 codes;  // 8 e4m3 codes in order
  float scale;  // the group's; the same in all its lanes
};

// x / y rounded to nearest in three instructions: the product with the reciprocal, corrected by its
// residual (Markstein, IBM J. Res. Dev. 34 (1), 1990). Neither may be so small that the residual
// leaves the normal range.
__device__ __forceinline__ float divide_by(float x, float y, float reciprocal) {
  const float estimate = x * reciprocal;
  return fmaf(fmaf(-estimate, y, x), reciprocal, estimate);
}

// The octets of kCount pairs of groups: all 32 lanes call it, and for each i lanes 0..15 hold one
// group, 16..31 another. packed[i] is 8 bf16 in order. The steps of all i run side by side, which
// hides their latencies. Tests try every pair of bf16 mantissas and every exponent.
template <int kCount>
__device__ __forceinline__ void quantize_octets(const uint4 (&packed)[kCount],
                                                QuantizedOctet (&octets)[kCount]) {
  constexpr float kLargestCode = 448;
  constexpr float kSmall = 0x1p-40f;  // below, both sides of the division are scaled up, exactly
  constexpr float kUp = 0x1p80f;
  float x[kCount][8];
  float largest[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint32_t words[4] = {packed[i].x, packed[i].y, packed[i].z, packed[i].w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x[i][2 * k] = __uint_as_float(words[k] << 16);
      x[i][2 * k + 1] = __uint_as_float(words[k] & 0xFFFF0000u);
    }
    largest[i] = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) largest[i] = fmaxf(largest[i], fabsf(x[i][k]));
  }
#pragma unroll
  for (int lanes = 8; lanes >= 1; lanes /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(0xFFFFFFFFu, largest[i], lanes));
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float quotient = divide_by(largest[i], kLargestCode, 1 / kLargestCode);
    octets[i].scale = largest[i] > 0 ? quotient : 1.0f;
    float divisor = octets[i].scale;
    if (largest[i] < kSmall) {
      divisor *= kUp;
#pragma unroll
      for (int k = 0; k < 8; ++k) x[i][k] *= kUp;
    }
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
    reciprocal = fmaf(fmaf(-divisor, reciprocal, 1.0f), reciprocal, reciprocal);
    uint32_t pairs[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pairs[k] =
          __nv_cvt_float2_to_fp8x2(make_float2(divide_by(x[i][2 * k], divisor, reciprocal),
                                               divide_by(x[i][2 * k + 1], divisor, reciprocal)),
                                   __NV_SATFINITE,
                                   __NV_E4M3);
    }
    octets[i].codes = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  }
}

// The same for lanes that hold a group otherwise: what its values are divided by, from the largest
// magnitude among them.
struct GroupScale {
  float scale;
  float up;          // 1, or what both sides of the division are multiplied by first: exact
  float divisor;     // scale * up
  float reciprocal;  // of the divisor
};
__device__ __forceinline__ GroupScale group_scale(float largest) {
  constexpr float kLargestCode = 448;
  constexpr float kSmall = 0x1p-40f;
  constexpr float kUp = 0x1p80f;
  GroupScale group;
  const float quotient = divide_by(largest, kLargestCode, 1 / kLargestCode);
  group.scale = largest > 0 ? quotient : 1.0f;
  group.up = largest < kSmall ? kUp : 1.0f;
  group.divisor = group.scale * group.up;
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(group.divisor));
  group.reciprocal = fmaf(fmaf(-group.divisor, reciprocal, 1.0f), reciprocal, reciprocal);
  return group;
}
// The codes of two values that have been multiplied by `up`, the first in the low byte.
__device__ __forceinline__ uint32_t code_pair(float x, float y, const GroupScale& group) {
  return __nv_cvt_float2_to_fp8x2(make_float2(divide_by(x, group.divisor, group.reciprocal),
                                              divide_by(y, group.divisor, group.reciprocal)),
                                  __NV_SATFINITE,
                                  __NV_E4M3);
}

}  // namespace r1d::kernels
