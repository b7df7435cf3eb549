// SPDX-License-Identifier: Apache-2.0
// The GEMM with AVX-512 BF16 dot products. Highway 1.0.3 does not reach vdpbf16ps, so this file
// uses intrinsics, compiled for the instruction set by function attributes and chosen at run time.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "r1d/base/check.h"

#include "ops/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace r1d::ops::cpu {
namespace {

#define R1D_BF16_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c")))
#define R1D_BF16_INLINE R1D_BF16_TARGET __attribute__((always_inline)) inline

constexpr int64_t kLanes = 32;  // bf16 values of a vector
constexpr int kTokenTile = 4;   // 4 rows x 4 tokens: 16 sums
// FP8 values are handled times 2^-8 (load-inl.h), so their scales times 2^8.
constexpr float kF8Scale = 256.0F;

using Bf16 = uint16_t;
using F8 = uint8_t;

R1D_BF16_INLINE __mmask32 first_lanes(int64_t count) {
  return static_cast<__mmask32>((uint64_t{1} << std::min(count, kLanes)) - 1);
}

R1D_BF16_INLINE __m512bh load_weights(const Bf16* p, __mmask32 mask) {
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}

// Sixteen e4m3 values times 2^-8 as f32; load-inl.h explains the bits. Zero-masked intrinsics,
// since GCC 12 warns about the undefined operand inside the unmasked ones.
R1D_BF16_INLINE __m512 load_f8(const F8* p, __mmask16 mask) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_maskz_loadu_epi8(mask, p));
  const __m256i bits = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-0x4001));
  const __m256i nan = _mm256_and_si256(_mm256_add_epi16(bits, _mm256_set1_epi16(0x0080)),
                                       _mm256_set1_epi16(0x4000));
  return _mm512_maskz_cvtph_ps(0xFFFF, _mm256_or_si256(bits, nan));
}

// e4m3 -> f16 -> f32 -> bf16, every step exact.
R1D_BF16_INLINE __m512bh load_weights(const F8* p, __mmask32 mask) {
  const __m512 low = load_f8(p, static_cast<__mmask16>(mask));
  const __m512 high = load_f8(p + 16, static_cast<__mmask16>(mask >> 16));
  return _mm512_cvtne2ps_pbh(high, low);
}

// One row of activations, rounded to bf16 (nearest even).
R1D_BF16_TARGET void round_row(const float* x, int64_t cols, Bf16* out) {
  for (int64_t k = 0; k < cols; k += kLanes) {
    const __mmask32 mask = first_lanes(cols - k);
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x + k);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + k + 16);
    _mm512_mask_storeu_epi16(
        out + k, mask, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
}

R1D_BF16_INLINE float sum_lanes(__m512 v) {
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, v);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Four rows of weights; scales of one FP8 row each, null for bf16.
template <class T>
struct RowQuad {
  const T* w[4];
  const float* scales[4];
  int64_t scale_col_offset = 0;
  bool scaled = false;
};

// The sums of one scale block, times its scale, into the totals. (All loops over accumulators are
// unrolled, so that the arrays live in registers.)
template <int kTokens, class T>
R1D_BF16_INLINE void add_block(const __m512 (&block)[kTokens][4],
                               const RowQuad<T>& rows,
                               int64_t block_idx,
                               __m512 (&total)[kTokens][4]) {
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const float factor = rows.scaled ? rows.scales[r][block_idx] * kF8Scale : 1.0F;
    const __m512 scale = _mm512_set1_ps(factor);
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t)
      total[t][r] = _mm512_fmadd_ps(block[t][r], scale, total[t][r]);
  }
}

// sums[t][r] = rows.w[r] . x[t]. Vectors start at the beginning of each scale block.
template <int kTokens, class T>
R1D_BF16_TARGET void dot_quad(const RowQuad<T>& rows,
                              const Bf16* const* x,
                              int64_t cols,
                              float (*sums)[4]) {
  constexpr int64_t kBlock = Matrix::kScaleBlock;
  __m512 total[kTokens][4] = {};
  int64_t k = 0;
  for (int64_t block_idx = rows.scale_col_offset / kBlock; k < cols; ++block_idx) {
    const int64_t end =
        rows.scaled ? std::min(cols, (block_idx + 1) * kBlock - rows.scale_col_offset) : cols;
    __m512 block[kTokens][4] = {};
    for (; k < end; k += kLanes) {
      const __mmask32 mask = first_lanes(end - k);
      __m512bh xs[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) xs[t] = load_weights(x[t] + k, mask);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const __m512bh w = load_weights(rows.w[r] + k, mask);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) block[t][r] = _mm512_dpbf16_ps(block[t][r], w, xs[t]);
      }
    }
    k = end;
    add_block<kTokens>(block, rows, block_idx, total);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sums[t][r] = sum_lanes(total[t][r]);
  }
}

template <class T>
void dot_tile(
    int64_t tokens, const RowQuad<T>& rows, const Bf16* const* x, int64_t cols, float (*sums)[4]) {
  if (tokens == 1) return dot_quad<1>(rows, x, cols, sums);
  if (tokens == 2) return dot_quad<2>(rows, x, cols, sums);
  if (tokens == 3) return dot_quad<3>(rows, x, cols, sums);
  dot_quad<4>(rows, x, cols, sums);
}

// Rows of stored weights, or of FP8 weights converted to (unscaled) bf16.
template <class T>
struct WeightView {
  const Matrix& matrix;
  const T* data = nullptr;  // row `first_row` of the matrix
  int64_t first_row = 0;

  [[nodiscard]] RowQuad<T> quad(int64_t row, int64_t row_end) const {
    RowQuad<T> result{};
    result.scale_col_offset = matrix.scale_col_offset;
    result.scaled = matrix.scale != nullptr;
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t r = std::min(row + i, row_end - 1);
      result.w[i] = data + (r - first_row) * matrix.cols;
      if (!result.scaled) continue;
      const int64_t scale_row = (r + matrix.scale_row_offset) / Matrix::kScaleBlock;
      result.scales[i] = matrix.scale + scale_row * matrix.scale_cols;
    }
    return result;
  }
};

// Rows [row_begin, row_end) for the tokens of `range`; `rounded`: kTokenTile rows of activations.
template <class T>
void multiply(const GemmJob& job,
              const WeightView<T>& weights,
              int64_t row_begin,
              int64_t row_end,
              const GemmRange& range,
              Bf16* rounded) {
  const int64_t cols = job.weights.cols;
  float sums[kTokenTile][4];
  const Bf16* x[kTokenTile];
  for (int64_t t = range.token_begin; t < range.token_end; t += kTokenTile) {
    const int64_t tokens = std::min<int64_t>(kTokenTile, range.token_end - t);
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t token = job.x_rows != nullptr ? job.x_rows[t + i] : t + i;
      round_row(job.x + job.x_stride * token, cols, rounded + i * cols);
      x[i] = rounded + i * cols;
    }
    for (int64_t r = row_begin; r < row_end; r += 4) {
      dot_tile(tokens, weights.quad(r, row_end), x, cols, sums);
      const int64_t count = std::min<int64_t>(4, row_end - r);
      for (int64_t i = 0; i < tokens; ++i) {
        std::copy_n(sums[i], count, job.y + (t + i) * job.y_stride + r);
      }
    }
  }
}

R1D_BF16_TARGET void convert_row(const F8* w, int64_t cols, Bf16* out) {
  for (int64_t k = 0; k < cols; k += kLanes) {
    const __mmask32 mask = first_lanes(cols - k);
    _mm512_mask_storeu_epi16(out + k, mask, reinterpret_cast<__m512i>(load_weights(w + k, mask)));
  }
}

void multiply_f8(const GemmJob& job, const GemmRange& range, Bf16* rounded, Bf16* panel) {
  const Matrix& m = job.weights;
  const auto* stored = static_cast<const F8*>(m.data);
  if (range.token_end - range.token_begin <= kTokenTile) {
    multiply(job, WeightView<F8>{m, stored, 0}, range.row_begin, range.row_end, range, rounded);
    return;
  }
  for (int64_t row = range.row_begin; row < range.row_end; row += kPanelRows) {
    const int64_t end = std::min(row + kPanelRows, range.row_end);
    for (int64_t r = row; r < end; ++r) {
      convert_row(stored + r * m.cols, m.cols, panel + (r - row) * m.cols);
    }
    multiply(job, WeightView<Bf16>{m, panel, row}, row, end, range, rounded);
  }
}

}  // namespace

bool has_bf16_dot() {
  return __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}

void gemm_range_bf16(const GemmJob& job, const GemmRange& range, float* panel) {
  const Matrix& m = job.weights;
  R1D_DCHECK(m.dtype != DType::kF32);
  // The f32 panel is twice what kPanelRows rows of bf16 need: the activations take the other half.
  static_assert(kTokenTile <= kPanelRows);
  auto* converted = reinterpret_cast<Bf16*>(panel);
  Bf16* rounded = converted + kPanelRows * m.cols;
  if (m.dtype == DType::kF8E4M3) return multiply_f8(job, range, rounded, converted);
  const WeightView<Bf16> weights{m, static_cast<const Bf16*>(m.data), 0};
  multiply(job, weights, range.row_begin, range.row_end, range, rounded);
}

}  // namespace r1d::ops::cpu

#else

namespace r1d::ops::cpu {

bool has_bf16_dot() {
  return false;
}

void gemm_range_bf16(const GemmJob& /*job*/, const GemmRange& /*range*/, float* /*panel*/) {
  R1D_CHECK(has_bf16_dot());
}

}  // namespace r1d::ops::cpu

#endif  // __x86_64__
