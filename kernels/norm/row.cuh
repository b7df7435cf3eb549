// SPDX-License-Identifier: Apache-2.0
// Pieces of kernels that work on rows of bf16 values, 8 (one 16-byte vector) a lane.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"

namespace r1d::kernels {

// Programmatic dependent launch where the architecture has it; see launch.h for the rules.
__device__ __forceinline__ void inputs_wait() {
#ifdef R1D_SM90
  grid_dependency_wait();
#endif
}
__device__ __forceinline__ void dependents_launch() {
#ifdef R1D_SM90
  grid_launch_dependents();
#endif
}

__device__ __forceinline__ void unpack_bf16(const uint4& bits, float (&v)[8]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000U);
  }
}
// Rounds to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint4 pack_bf16(const float (&v)[8]) {
  return {
      pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}
__device__ __forceinline__ void load_f32(const float* from, float (&v)[8]) {
  const float4 low = reinterpret_cast<const float4*>(from)[0];
  const float4 high = reinterpret_cast<const float4*>(from)[1];
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// Over the 16 lanes that hold 128 neighbouring values.
__device__ __forceinline__ float half_warp_sum(float v) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) v += __shfl_xor_sync(0xFFFFFFFFU, v, lane);
  return v;
}
__device__ __forceinline__ float half_warp_max(float v) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFU, v, lane));
  return v;
}
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v += __shfl_xor_sync(0xFFFFFFFFU, v, lane);
  return v;
}

// 8 values as e4m3 codes of v / scale. The quotient is that of IEEE division (a reciprocal, then
// one Newton step with an exact remainder) at a third of its instructions. A tiny scale is lifted
// so that its reciprocal exists.
__device__ __forceinline__ uint2 pack_e4m3(const float (&v)[8], float scale) {
  const float lift = scale < 0x1p-100F ? 0x1p100F : 1.F;
  const float divisor = scale * lift;
  const float reciprocal = __frcp_rn(divisor);
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float q[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float dividend = v[2 * i + j] * lift;
      const float guess = dividend * reciprocal;
      q[j] = fmaf(fmaf(-guess, divisor, dividend), reciprocal, guess);
    }
    pairs[i] = __nv_cvt_float2_to_fp8x2({q[0], q[1]}, __NV_SATFINITE, __NV_E4M3);
  }
  return {pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
}

}  // namespace r1d::kernels
