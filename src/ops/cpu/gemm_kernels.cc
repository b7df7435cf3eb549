// SPDX-License-Identifier: Apache-2.0
// Dot products of weight rows with activation rows: the GEMM and the attention scores.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gemm_kernels.cc"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include "r1d/base/check.h"

#include "ops/cpu/kernels.h"
#include "ops/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

// Accumulators captured by reference stay in registers only when the lambda is inlined.
#undef R1D_INLINE_LAMBDA
#define R1D_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

// A tile is 4 weight rows by kTokenTile tokens: 16 accumulators where there are 32 registers, 8
// where there are 16. Loads per multiply-add: (4 + 4) / 16 and (4 + 2) / 8.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr int kTokenTile = 4;
#else
inline constexpr int kTokenTile = 2;
#endif

// Four rows of stored weights and the rows of their scales (FP8 only).
template <class T>
struct RowQuad {
  const T* w[4];
  const float* scales[4];
  int64_t scale_col_offset = 0;
};

template <class T>
HWY_INLINE VF block_scale(DF d, const float* scales, int64_t block) {
  if constexpr (std::is_same_v<T, F8>) return hn::Set(d, scales[block] * kStoredScale<F8>);
  return hn::Zero(d);
}

// The scaled weight is rounded before it is multiplied, so that weights converted here and weights
// converted into a panel give the same bits.
template <class T>
HWY_INLINE VF scaled_weights(DF d, const T* p, int64_t count, VF block) {
  const VF w = load_up_to(d, p, count);
  if constexpr (std::is_same_v<T, F8>) return hn::Mul(w, block);
  return w;
}

template <class V>
HWY_INLINE void fma_rows(V w0, V w1, V w2, V w3, V x, V& a0, V& a1, V& a2, V& a3) {
  a0 = hn::MulAdd(w0, x, a0);
  a1 = hn::MulAdd(w1, x, a1);
  a2 = hn::MulAdd(w2, x, a2);
  a3 = hn::MulAdd(w3, x, a3);
}

template <class V>
HWY_INLINE void store_sums(DF d, V a0, V a1, V a2, V a3, float* sums) {
  sums[0] = hn::GetLane(hn::SumOfLanes(d, a0));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, a1));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, a2));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, a3));
}

// sums[t][r] = rows.w[r] . x[t]. Vectors start at multiples of the lane count from column 0; one
// that straddles two scale blocks takes each lane's own scale.
template <int kTokens, class T>
HWY_NOINLINE void dot_quad(const RowQuad<T>& rows,
                           const float* const* x,
                           int64_t cols,
                           float (*sums)[4]) {
  constexpr bool kScaled = std::is_same_v<T, F8>;
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF zero = hn::Zero(d);
  VF a0 = zero, a1 = zero, a2 = zero, a3 = zero;  // token 0, weight rows 0 to 3
  VF b0 = zero, b1 = zero, b2 = zero, b3 = zero;  // token 1
  VF c0 = zero, c1 = zero, c2 = zero, c3 = zero;
  VF e0 = zero, e1 = zero, e2 = zero, e3 = zero;
  const auto step = [&](int64_t k, int64_t count, VF s0, VF s1, VF s2, VF s3) R1D_INLINE_LAMBDA {
    const VF w0 = scaled_weights(d, rows.w[0] + k, count, s0);
    const VF w1 = scaled_weights(d, rows.w[1] + k, count, s1);
    const VF w2 = scaled_weights(d, rows.w[2] + k, count, s2);
    const VF w3 = scaled_weights(d, rows.w[3] + k, count, s3);
    fma_rows(w0, w1, w2, w3, load_up_to(d, x[0] + k, count), a0, a1, a2, a3);
    if constexpr (kTokens > 1) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[1] + k, count), b0, b1, b2, b3);
    }
    if constexpr (kTokens > 2) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[2] + k, count), c0, c1, c2, c3);
    }
    if constexpr (kTokens > 3) {
      fma_rows(w0, w1, w2, w3, load_up_to(d, x[3] + k, count), e0, e1, e2, e3);
    }
  };
  int64_t k = 0;
  for (int64_t block = rows.scale_col_offset / kBlock; k < cols; ++block) {
    const int64_t end =
        kScaled ? std::min(cols, (block + 1) * kBlock - rows.scale_col_offset) : cols;
    VF s0 = block_scale<T>(d, rows.scales[0], block);
    VF s1 = block_scale<T>(d, rows.scales[1], block);
    VF s2 = block_scale<T>(d, rows.scales[2], block);
    VF s3 = block_scale<T>(d, rows.scales[3], block);
    for (; k + lanes <= end; k += lanes) step(k, lanes, s0, s1, s2, s3);
    if (k >= end) continue;
    if (kScaled && end < cols) {
      const auto own = hn::FirstN(d, static_cast<size_t>(end - k));
      s0 = hn::IfThenElse(own, s0, block_scale<T>(d, rows.scales[0], block + 1));
      s1 = hn::IfThenElse(own, s1, block_scale<T>(d, rows.scales[1], block + 1));
      s2 = hn::IfThenElse(own, s2, block_scale<T>(d, rows.scales[2], block + 1));
      s3 = hn::IfThenElse(own, s3, block_scale<T>(d, rows.scales[3], block + 1));
    }
    step(k, std::min(lanes, cols - k), s0, s1, s2, s3);
    k += lanes;
  }
  store_sums(d, a0, a1, a2, a3, sums[0]);
  if constexpr (kTokens > 1) store_sums(d, b0, b1, b2, b3, sums[1]);
  if constexpr (kTokens > 2) store_sums(d, c0, c1, c2, c3, sums[2]);
  if constexpr (kTokens > 3) store_sums(d, e0, e1, e2, e3, sums[3]);
}

// A product's weight rows, as stored or as a panel of f32.
template <class T>
struct WeightView {
  const T* data = nullptr;  // row 0
  int64_t cols = 0;
  int64_t rows = 0;
  const float* scale = nullptr;
  int64_t scale_cols = 0;
  int64_t scale_row_offset = 0;
  int64_t scale_col_offset = 0;

  [[nodiscard]] const float* scales(int64_t row) const {
    if (scale == nullptr) return nullptr;
    return scale + (row + scale_row_offset) / Matrix::kScaleBlock * scale_cols;
  }
  // Rows from `row`; past the end the last row stands in and its sums are dropped.
  [[nodiscard]] RowQuad<T> quad(int64_t row) const {
    RowQuad<T> result;
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t r = std::min(row + i, rows - 1);
      result.w[i] = data + r * cols;
      result.scales[i] = scales(r);
    }
    result.scale_col_offset = scale_col_offset;
    return result;
  }
};

template <class T>
WeightView<T> view_of(const Matrix& m) {
  return {.data = static_cast<const T*>(m.data),
          .cols = m.cols,
          .rows = m.rows,
          .scale = m.scale,
          .scale_cols = m.scale_cols,
          .scale_row_offset = m.scale_row_offset,
          .scale_col_offset = m.scale_col_offset};
}

template <class T>
void dequantize_row(const WeightView<T>& weights, int64_t row, float* out) {
  constexpr bool kScaled = std::is_same_v<T, F8>;
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* w = weights.data + row * weights.cols;
  const float* scales = weights.scales(row);
  int64_t k = 0;
  for (int64_t block = weights.scale_col_offset / kBlock; k < weights.cols; ++block) {
    const int64_t end =
        kScaled ? std::min(weights.cols, (block + 1) * kBlock - weights.scale_col_offset)
                : weights.cols;
    const VF s = block_scale<T>(d, scales, block);
    for (; k + lanes <= end; k += lanes) hn::StoreU(scaled_weights(d, w + k, lanes, s), d, out + k);
    store_up_to(d, scaled_weights(d, w + k, end - k, s), out + k, end - k);
    k = end;
  }
}

template <class T>
HWY_INLINE void dot_tile(
    int64_t tokens, const RowQuad<T>& rows, const float* const* x, int64_t cols, float (*sums)[4]) {
  if (tokens == 1) return dot_quad<1>(rows, x, cols, sums);
  if constexpr (kTokenTile == 4) {
    if (tokens == 3) return dot_quad<3>(rows, x, cols, sums);
    if (tokens == 4) return dot_quad<4>(rows, x, cols, sums);
  }
  dot_quad<2>(rows, x, cols, sums);
}

// Computes y[t, first_column + r] for rows r of `weights` from row_begin to row_end. Tokens
// outside: kTokenTile rows of x stay in the first-level cache while the panel passes.
template <class T>
void multiply(const GemmJob& job,
              const WeightView<T>& weights,
              int64_t row_begin,
              int64_t row_end,
              int64_t first_column,
              int64_t token_begin,
              int64_t token_end) {
  float sums[kTokenTile][4];
  const float* x[kTokenTile];
  for (int64_t t = token_begin; t < token_end; t += kTokenTile) {
    const int64_t tokens = std::min<int64_t>(kTokenTile, token_end - t);
    for (int64_t i = 0; i < tokens; ++i) {
      x[i] = job.x + job.x_stride * (job.x_rows != nullptr ? job.x_rows[t + i] : t + i);
    }
    for (int64_t r = row_begin; r < row_end; r += 4) {
      dot_tile(tokens, weights.quad(r), x, weights.cols, sums);
      const int64_t count = std::min<int64_t>(4, row_end - r);
      for (int64_t i = 0; i < tokens; ++i) {
        std::copy_n(sums[i], count, job.y + (t + i) * job.y_stride + first_column + r);
      }
    }
  }
}

// Few tokens: convert in registers. Many: convert each panel of rows once.
template <class T>
void multiply_stored(const GemmJob& job, const GemmRange& range, float* panel) {
  const WeightView<T> weights = view_of<T>(job.weights);
  const int64_t tokens = range.token_end - range.token_begin;
  if (std::is_same_v<T, float> || tokens <= kTokenTile) {
    multiply(job, weights, range.row_begin, range.row_end, 0, range.token_begin, range.token_end);
    return;
  }
  for (int64_t row = range.row_begin; row < range.row_end; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, range.row_end - row);
    for (int64_t i = 0; i < count; ++i) {
      dequantize_row(weights, row + i, panel + i * weights.cols);
    }
    const WeightView<float> converted{.data = panel, .cols = weights.cols, .rows = count};
    multiply(job, converted, 0, count, row, range.token_begin, range.token_end);
  }
}

void gemm_range_impl(const GemmJob& job, const GemmRange& range, float* panel) {
  switch (job.weights.dtype) {
    case DType::kF32:
      return multiply_stored<float>(job, range, panel);
    case DType::kBF16:
      return multiply_stored<Bf16>(job, range, panel);
    case DType::kF8E4M3:
      return multiply_stored<F8>(job, range, panel);
  }
}

template <class T>
void dequantize(const Matrix& m, int64_t row_begin, int64_t row_end, float* out, int64_t stride) {
  const WeightView<T> weights = view_of<T>(m);
  for (int64_t r = row_begin; r < row_end; ++r) {
    dequantize_row(weights, r, out + (r - row_begin) * stride);
  }
}

void dequantize_impl(
    const Matrix& m, int64_t row_begin, int64_t row_end, float* out, int64_t stride) {
  switch (m.dtype) {
    case DType::kF32:
      return dequantize<float>(m, row_begin, row_end, out, stride);
    case DType::kBF16:
      return dequantize<Bf16>(m, row_begin, row_end, out, stride);
    case DType::kF8E4M3:
      return dequantize<F8>(m, row_begin, row_end, out, stride);
  }
}

template <class T>
void dot_row_list(const RowList& keys,
                  int64_t cols,
                  const float* queries,
                  int64_t query_stride,
                  int64_t num_queries,
                  float* scores,
                  int64_t score_stride) {
  float sums[kTokenTile][4];
  const float* x[kTokenTile];
  for (int64_t k = 0; k < keys.count; k += 4) {
    RowQuad<T> rows{};
    for (int64_t i = 0; i < 4; ++i) {
      rows.w[i] = static_cast<const T*>(keys.rows[std::min(k + i, keys.count - 1)]);
    }
    for (int64_t q = 0; q < num_queries; q += kTokenTile) {
      const int64_t tile = std::min<int64_t>(kTokenTile, num_queries - q);
      for (int64_t i = 0; i < tile; ++i) x[i] = queries + (q + i) * query_stride;
      dot_tile(tile, rows, x, cols, sums);
      const int64_t count = std::min<int64_t>(4, keys.count - k);
      for (int64_t i = 0; i < tile; ++i) {
        std::copy_n(sums[i], count, scores + (q + i) * score_stride + k);
      }
    }
  }
}

void dot_rows_impl(const RowList& keys,
                   int64_t cols,
                   const float* queries,
                   int64_t query_stride,
                   int64_t num_queries,
                   float* scores,
                   int64_t score_stride) {
  const auto run = keys.dtype == DType::kF32 ? dot_row_list<float> : dot_row_list<Bf16>;
  run(keys, cols, queries, query_stride, num_queries, scores, score_stride);
}

}  // namespace r1d::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace r1d::ops::cpu {

HWY_EXPORT(gemm_range_impl);
HWY_EXPORT(dequantize_impl);
HWY_EXPORT(dot_rows_impl);

void gemm_range(const GemmJob& job, const GemmRange& range, float* panel) {
  HWY_DYNAMIC_DISPATCH(gemm_range_impl)(job, range, panel);
}

void dequantize_rows(
    const Matrix& weights, int64_t row_begin, int64_t row_end, float* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(dequantize_impl)(weights, row_begin, row_end, out, out_stride);
}

void dot_rows(const RowList& keys,
              int64_t cols,
              const float* queries,
              int64_t query_stride,
              int64_t num_queries,
              float* scores,
              int64_t score_stride) {
  R1D_DCHECK(keys.dtype != DType::kF8E4M3);
  HWY_DYNAMIC_DISPATCH(dot_rows_impl)
  (keys, cols, queries, query_stride, num_queries, scores, score_stride);
}

}  // namespace r1d::ops::cpu
#endif  // HWY_ONCE
