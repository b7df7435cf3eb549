// SPDX-License-Identifier: Apache-2.0
// The vectorised inner loops of the CPU operators: plain pointers, one thread each, compiled once
// per instruction set and chosen at run time (Highway). All arithmetic is f32.
//
// Batch invariance: an output element is one chain of multiply-adds over the reduction index in an
// order that depends on that length alone, never on how many rows, tokens or heads a call covers. A
// token's results are the same bits whatever else is in the step.
#pragma once

#include <cstdint>

#include "r1d/base/dtype.h"
#include "r1d/ops/tensor.h"

namespace r1d::ops::cpu {

// Weight rows converted together by those who use them as they are (attention, bf16 products).
inline constexpr int64_t kPanelRows = 16;

// A product of many tokens goes in blocks of rows, columns and tokens: 96 KB of weights as f32,
// 128 KB of activations and at most 192 KB of running sums, a vector each, stay in a second-level
// cache; 8 rows and the activations of a tile, 24 KB, in a first-level one.
inline constexpr int64_t kBlockRows = 48;
inline constexpr int64_t kBlockCols = 512;
inline constexpr int64_t kBlockTokens = 64;
inline constexpr int64_t kNearRows = 8;
// The most of any target: AVX-512, SVE.
#if defined(__aarch64__)
inline constexpr int64_t kBlockLanes = 64;
#else
inline constexpr int64_t kBlockLanes = 16;
#endif
inline constexpr int64_t kGemmScratch =
    kBlockRows * kBlockCols + kBlockRows * kBlockTokens * kBlockLanes;

// y[t, n] = x(t) . weights[n], x(t) = x + x_stride * (x_rows ? x_rows[t] : t). Nothing aliases y.
struct GemmJob {
  Matrix weights;
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* x_rows = nullptr;
  int64_t tokens = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  bool exact = false;  // never through bf16_dot
};

// The part of a job that one task computes.
struct GemmRange {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

// `scratch`: kGemmScratch floats.
void gemm_range(const GemmJob& job, const GemmRange& range, float* scratch);

// The same with activations rounded to bf16 and bf16 products summed in f32 (AVX-512 BF16); an FP8
// weight is exact in bf16 and its scale multiplies the partial sum of each scale block. Weights
// bf16 or FP8. Only where has_bf16_dot(). `panel`: kPanelRows * weights.cols floats.
void gemm_range_bf16(const GemmJob& job, const GemmRange& range, float* panel);
[[nodiscard]] bool has_bf16_dot();

// out[r - row_begin, :] = the f32 values of weight rows [row_begin, row_end), scales applied.
void dequantize_rows(
    const Matrix& weights, int64_t row_begin, int64_t row_end, float* out, int64_t out_stride);

// Rows of `dtype` (f32 or bf16) that need not be neighbours: keys in the pages of a cache.
struct RowList {
  const void* const* rows = nullptr;
  int64_t count = 0;
  DType dtype = DType::kF32;
};

// scores[q, k] = queries[q] . keys.rows[k] over `cols` values.
void dot_rows(const RowList& keys,
              int64_t cols,
              const float* queries,
              int64_t query_stride,
              int64_t num_queries,
              float* scores,
              int64_t score_stride);

// out[i] = decay[i] * out[i] + sum over k of weights[i, k] * values.rows[k], over `cols` values.
void weighted_sum_rows(const RowList& values,
                       int64_t cols,
                       const float* weights,
                       int64_t weight_stride,
                       int64_t num_outputs,
                       const float* decay,
                       float* out,
                       int64_t out_stride);

// Running maximum and sum of one row's softmax over tiles of keys (FlashAttention, arXiv
// 2205.14135).
struct SoftmaxState {
  float max = -__builtin_huge_valf();
  float sum = 0;
};

// Turns `count` scores into exp(scale * score - running max) in place and returns the factor by
// which sums made under the old maximum shrink. `scores` has room up to the next multiple of 64,
// which is overwritten. A NaN score gives a NaN sum.
[[nodiscard]] float softmax_update(float* scores, int64_t count, float scale, SoftmaxState& state);

// out = x * rsqrt(mean(x^2) + eps) * weight; out may be x.
void rms_norm(const float* x, const float* weight, float eps, int64_t cols, float* out);

// gate = silu(gate) * up.
void silu_mul(float* gate, const float* up, int64_t count);

// y += factor * x; y = factor * x.
void add_scaled(float* y, float factor, const float* x, int64_t count);
void scale(float* y, float factor, const float* x, int64_t count);

// One row of `dtype` (any) without scales to f32.
void load_row(const void* row, DType dtype, int64_t cols, float* out);

// The instruction set that the kernels run on, e.g. "AVX3".
[[nodiscard]] const char* vector_target();

}  // namespace r1d::ops::cpu
