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

// x / y in a few instructions where neither quotient nor remainder leaves the normal range: the
// product with the reciprocal, corrected by its residual (Markstein, IBM J. Res. Dev. 34 (1),
// 1990). A test tries every pair of bf16 mantissas.
__device__ __forceinline__ float divide_by(float x, float y, float reciprocal) {
  const float estimate = x * reciprocal;
  return fmaf(fmaf(-estimate, y, x), reciprocal, estimate);
}

// All 32 lanes call it; lanes 0..15 hold one group, 16..31 another. `packed` is 8 bf16 in order.
__device__ __forceinline__ QuantizedOctet quantize_octet(const uint4& packed) {
  float x[8];
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
  for (int lanes = 8; lanes >= 1; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, lanes));
  }
  constexpr float kLargestCode = 448;
  QuantizedOctet result;
  if (largest > 0x1p-50f && largest < 0x1p126f) {
    result.scale = divide_by(largest, kLargestCode, 1 / kLargestCode);
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(result.scale));
    reciprocal = fmaf(fmaf(-result.scale, reciprocal, 1.0f), reciprocal, reciprocal);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = divide_by(x[i], result.scale, reciprocal);
  } else {
    result.scale = largest > 0 ? __fdiv_rn(largest, kLargestCode) : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = __fdiv_rn(x[i], result.scale);
  }
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] =
        __nv_cvt_float2_to_fp8x2(make_float2(x[2 * i], x[2 * i + 1]), __NV_SATFINITE, __NV_E4M3);
  }
  result.codes = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  return result;
}

}  // namespace r1d::kernels
