// SPDX-License-Identifier: Apache-2.0
// What the forms of gate_up and down share.
#pragma once

#include <cstdint>

#include <cuda_fp8.h>

#include "kernels/common/ptx.cuh"
#include "kernels/common/ring.cuh"
#include "kernels/moe_decode/moe_decode.h"

namespace r1d::kernels::moe {

constexpr int kColumns = 128;  // a scale's block of columns
constexpr int kTileBytes = TiledMatrix::kTileBytes;
constexpr int kAtomBytes = 1024;  // 8 rows x 128 bytes, the unit of the swizzle
constexpr int kStrips = 4;        // 64-row strips of gate_up to 128 columns of h
constexpr int kMaxTopK = 32;

// i / n as a product, for i * n < 2^32.
struct Quotient {
  uint32_t n = 1;
  uint32_t reciprocal = 0;
  Quotient() = default;
  explicit Quotient(int by)
      : n(by),
        reciprocal(by == 1 ? 0 : static_cast<uint32_t>(((uint64_t{1} << 32) + by - 1) / by)) {}
#ifdef R1D_SM90
  __device__ __forceinline__ int operator()(int i) const {
    return n == 1 ? i : static_cast<int>(__umulhi(i, reciprocal));
  }
#endif  // R1D_SM90
};

// Everything that the kernels read.
struct Problem {
  QuantizedRows x;
  const int32_t* experts;  // chosen, [T][k]
  const float* weights;
  ListOptions options;
  ExpertLists lists;
  RoutedExperts routed;
  SharedExpert shared;
  __nv_bfloat16* out;
  uint32_t* arrivals;  // zero between calls
  float2* partial;     // of units that several blocks share
  uint8_t* h;          // routed, then shared
  float* h_scale;
  uint8_t* shared_h;
  float* shared_h_scale;
  int num_tokens;
  int top_k;
  int max_blocks;
  int stages;
  int hidden_blocks;   // D / 128
  int routed_columns;  // I / 128
  int shared_columns;  // Is / 128, 0 without a shared expert
  int shared_blocks;   // token blocks of the shared expert
  Quotient by_chunks;  // of gate_up, many.cu
  Quotient by_top_k;
  Quotient by_routed_columns;
  Quotient by_shared_columns;
};

// One (token block, 128 columns of h).
struct Unit {
  bool shared;
  int columns;  // which 128
  int count;    // tokens
  int begin;    // first entry; the shared expert: first token
  int expert;
  int group;
};

inline constexpr int kFewTokens = 8;

// Both products for up to 8 tokens and small shares of the experts (few.cu), and whether they are.
bool few_serves(const Problem& p);
cudaError_t enqueue_few(const Problem& p, const Launch& launch);

// Both products for more than 8 tokens (many.cu).
// Bytes at Problem::partial.
size_t many_partial_bytes(int64_t hidden);
cudaError_t enqueue_many(Problem p, const Launch& launch);

#ifdef R1D_SM90

// The scales of all experts into L2: few bytes that would queue behind megabytes of weights once
// the lists say which are wanted. `thread` of `threads` of the grid.
__device__ __forceinline__ void prefetch_scales(const Problem& p, int thread, int threads) {
  constexpr int kLine = 32;  // floats
  const int count = p.routed_columns * p.hidden_blocks;
  const int lines = (count + kLine - 1) / kLine + 1;  // an array may begin inside a line
  for (int i = thread; i < p.routed.num_local * lines; i += threads) {
    const int expert = i / lines;
    const int at = min((i - expert * lines) * kLine, count - 1);
    prefetch_l2(p.routed.gate_scale + expert * p.routed.gate_up_scale_stride + at);
    prefetch_l2(p.routed.up_scale + expert * p.routed.gate_up_scale_stride + at);
    prefetch_l2(p.routed.down_scale + expert * p.routed.down_scale_stride + at);
  }
}

// h = silu(gate) * up of a token's 128 columns, quantized, in a warp.
struct Quantized {
  uint32_t codes;  // the lane's columns 4 lane ..
  float scale;
};

// a, b: (gate, up) of the lane's first two columns and of its other two.
__device__ __forceinline__ Quantized quantized_h(float4 a, float4 b) {
  const auto swiglu = [](float gate, float up) { return gate / (1.0F + expf(-gate)) * up; };
  const float h0 = swiglu(a.x, a.y);
  const float h1 = swiglu(a.z, a.w);
  const float h2 = swiglu(b.x, b.y);
  const float h3 = swiglu(b.z, b.w);
  // Magnitudes order as their bits do, NaN above all.
  const uint32_t largest = max(max(__float_as_uint(fabsf(h0)), __float_as_uint(fabsf(h1))),
                               max(__float_as_uint(fabsf(h2)), __float_as_uint(fabsf(h3))));
  const float most = __uint_as_float(__reduce_max_sync(~0U, largest));
  const float scale = most == 0 ? 1.0F : most / 448.0F;
  const uint32_t low =
      __nv_cvt_float2_to_fp8x2(make_float2(h0 / scale, h1 / scale), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high =
      __nv_cvt_float2_to_fp8x2(make_float2(h2 / scale, h3 / scale), __NV_SATFINITE, __NV_E4M3);
  return {low | high << 16, scale};
}

#endif  // R1D_SM90

}  // namespace r1d::kernels::moe
