// SPDX-License-Identifier: Apache-2.0
// Products in f32 arithmetic: the router, and the per-head products of absorbed attention.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "r1d/ops/tensor.h"

#include "kernels/common/launch.h"

namespace r1d::kernels::generic {

// For every head h: out_h[t, n] = sum over k of x_h[t, k] W_h(n, k), where W_h(n, k) is
// weights[weight_row + h * head_weight_rows + n][k], or with `transposed` weights[weight_row + h *
// head_weight_rows + k][n].
struct ExactProduct {
  ops::Matrix weights;
  int64_t weight_row = 0;
  int64_t head_weight_rows = 0;
  bool transposed = false;
  const void* x = nullptr;  // bf16, or f32 with x_f32
  bool x_f32 = false;
  int64_t x_stride = 0;
  int64_t head_x = 0;  // elements from one head's x to the next's
  int64_t num_tokens = 0;
  int64_t rows = 0;   // n
  int64_t depth = 0;  // k
  void* out = nullptr;
  bool out_f32 = false;
  int64_t out_stride = 0;
  int64_t head_out = 0;
  int32_t heads = 1;

  // absorb() also rotates: x_h[t, depth .. depth + rope) goes to out_h[t, rows .. rows + rope).
  int32_t rope = 0;
  bool interleave = true;
  const float* cos_sin = nullptr;  // [T, rope]
};
cudaError_t enqueue_exact_product(const ExactProduct& product, const Launch& launch);

}  // namespace r1d::kernels::generic
