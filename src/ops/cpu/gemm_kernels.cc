// SPDX-License-Identifier: Apache-2.0
// Products of weight rows with activation rows: the GEMM and the attention scores.
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

#include "ops/cpu/dot-inl.h"
#include "ops/cpu/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {

// A product's weight rows, as stored.
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
  // Rows row, row + step and so on; past `end` the last row stands in and its sums are dropped.
  [[nodiscard]] RowQuad<T> quad(int64_t row, int64_t step, int64_t end) const {
    RowQuad<T> result;
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t r = std::min(row + i * step, end - 1);
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

// Columns [begin, end) of a row, times their scales; `begin` is a multiple of the lanes.
template <class T>
void dequantize_cols(
    const WeightView<T>& weights, int64_t row, int64_t begin, int64_t end, float* out) {
  constexpr bool kScaled = std::is_same_v<T, F8>;
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* w = weights.data + row * weights.cols;
  const float* scales = weights.scales(row);
  int64_t k = begin;
  for (int64_t block = (k + weights.scale_col_offset) / kBlock; k < end; ++block) {
    const int64_t stop =
        kScaled ? std::min(end, (block + 1) * kBlock - weights.scale_col_offset) : end;
    const VF s = block_scale<T>(d, scales, block);
#if R1D_OPS_F8_GROUPS
    if constexpr (kScaled) {
      for (; k + kF8Group <= stop; k += kF8Group) {
        VF v0, v1, v2, v3;
        load_f8_group(w + k, v0, v1, v2, v3);
        hn::StoreU(hn::Mul(v0, s), d, out + (k - begin));
        hn::StoreU(hn::Mul(v1, s), d, out + (k - begin) + 16);
        hn::StoreU(hn::Mul(v2, s), d, out + (k - begin) + 32);
        hn::StoreU(hn::Mul(v3, s), d, out + (k - begin) + 48);
      }
    }
#endif
    for (; k + lanes <= stop; k += lanes) {
      hn::StoreU(scaled_weights(d, w + k, lanes, s), d, out + (k - begin));
    }
    if (k == stop) continue;
    store_up_to(d, scaled_weights(d, w + k, stop - k, s), out + (k - begin), stop - k);
    k = stop;
  }
}

const float* activations(const GemmJob& job, int64_t token) {
  return job.x + job.x_stride * (job.x_rows != nullptr ? job.x_rows[token] : token);
}

// Few tokens: weights are converted in registers. The four rows of a tile are a quarter of the
// range apart, so that memory is read as four long streams.
template <class T>
void multiply_direct(const GemmJob& job, const WeightView<T>& weights, const GemmRange& range) {
  const int64_t tokens = range.token_end - range.token_begin;
  const int64_t step = (range.row_end - range.row_begin + 3) / 4;
  float sums[kTokenTile][4];
  const float* x[kTokenTile];
  for (int64_t t = 0; t < tokens; ++t) x[t] = activations(job, range.token_begin + t);
  for (int64_t first = range.row_begin; first < range.row_begin + step; ++first) {
    dot_tile(tokens, weights.quad(first, step, range.row_end), x, weights.cols, sums);
    for (int64_t t = 0; t < tokens; ++t) {
      float* y = job.y + (range.token_begin + t) * job.y_stride;
      for (int64_t i = 0, r = first; i < 4 && r < range.row_end; ++i, r += step) y[r] = sums[t][i];
    }
  }
}

// Columns [col, col + cols) of a range of at most kBlockRows rows, converted in `panel`
// [rows, kBlockCols], by at most kBlockTokens tokens. A few rows stay in the first-level cache
// while the tokens pass.
void multiply_panel(const GemmJob& job,
                    const GemmRange& range,
                    int64_t col,
                    int64_t cols,
                    const float* panel,
                    float* carry) {
  const int64_t rows = range.row_end - range.row_begin;
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  float sums[kTokenTile][4];
  BlockTile tile;
  tile.cols = cols;
  tile.first = col == 0;
  tile.last = col + cols == job.weights.cols;
  for (int64_t near = 0; near < rows; near += kNearRows) {
    for (int64_t t = range.token_begin; t < range.token_end; t += kTokenTile) {
      const int64_t tokens = std::min<int64_t>(kTokenTile, range.token_end - t);
      for (int64_t i = 0; i < tokens; ++i) tile.x[i] = activations(job, t + i) + col;
      float* token_carry = carry + (t - range.token_begin) * kBlockRows * lanes;
      for (int64_t r = near; r < std::min(rows, near + kNearRows); r += 4) {
        for (int64_t i = 0; i < 4; ++i) tile.w[i] = panel + std::min(r + i, rows - 1) * kBlockCols;
        tile.carry = token_carry + r * kTokenTile * lanes;
        dot_block_tile(tokens, tile, sums);
        if (!tile.last) continue;
        const int64_t count = std::min<int64_t>(4, rows - r);
        for (int64_t i = 0; i < tokens; ++i) {
          std::copy_n(sums[i], count, job.y + (t + i) * job.y_stride + range.row_begin + r);
        }
      }
    }
  }
}

// Many tokens: blocks of rows, tokens and columns whose weights (as f32), activations and sums stay
// in the second-level cache.
template <class T>
void multiply_blocked(const GemmJob& job,
                      const WeightView<T>& weights,
                      const GemmRange& range,
                      float* scratch) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  static_assert(hn::MaxLanes(DF()) <= kBlockLanes);
  float* carry = scratch + kBlockRows * kBlockCols;
  GemmRange block;
  for (block.row_begin = range.row_begin; block.row_begin < range.row_end;
       block.row_begin = block.row_end) {
    block.row_end = std::min(block.row_begin + kBlockRows, range.row_end);
    for (block.token_begin = range.token_begin; block.token_begin < range.token_end;
         block.token_begin = block.token_end) {
      block.token_end = std::min(block.token_begin + kBlockTokens, range.token_end);
      for (int64_t col = 0; col < weights.cols; col += kBlockCols) {
        const int64_t cols = std::min(kBlockCols, weights.cols - col);
        const int64_t padded = (cols + lanes - 1) / lanes * lanes;
        for (int64_t r = block.row_begin; r < block.row_end; ++r) {
          float* row = scratch + (r - block.row_begin) * kBlockCols;
          dequantize_cols(weights, r, col, col + cols, row);
          std::fill(row + cols, row + padded, 0.0F);
        }
        multiply_panel(job, block, col, cols, scratch, carry);
      }
    }
  }
}

template <class T>
void multiply(const GemmJob& job, const GemmRange& range, float* scratch) {
  const WeightView<T> weights = view_of<T>(job.weights);
  const int64_t tokens = range.token_end - range.token_begin;
  if (tokens < 1) return;
  if (tokens <= kTokenTile) {
    multiply_direct(job, weights, range);
  } else {
    multiply_blocked(job, weights, range, scratch);
  }
}

void gemm_range_impl(const GemmJob& job, const GemmRange& range, float* scratch) {
  switch (job.weights.dtype) {
    case DType::kF32:
      return multiply<float>(job, range, scratch);
    case DType::kBF16:
      return multiply<Bf16>(job, range, scratch);
    case DType::kF8E4M3:
      return multiply<F8>(job, range, scratch);
  }
}

template <class T>
void dequantize(const Matrix& m, int64_t row_begin, int64_t row_end, float* out, int64_t stride) {
  const WeightView<T> weights = view_of<T>(m);
  for (int64_t r = row_begin; r < row_end; ++r) {
    dequantize_cols(weights, r, 0, m.cols, out + (r - row_begin) * stride);
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

void gemm_range(const GemmJob& job, const GemmRange& range, float* scratch) {
  HWY_DYNAMIC_DISPATCH(gemm_range_impl)(job, range, scratch);
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
