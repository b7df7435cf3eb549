// SPDX-License-Identifier: Apache-2.0
// Norms, softmax, activation, and sums of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/vector_kernels.cc"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include "r1d/base/check.h"

#include "ops/cpu/kernels.h"
#include "ops/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

#undef R1D_INLINE_LAMBDA
#define R1D_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

// Up to four outputs of a weighted sum; surplus entries repeat the last output, which then is
// computed and stored twice with the same value.
struct OutputQuad {
  const float* weights[4];
  float decay[4];
  float* out[4];
};

// Columns [c, c + n0 + n1) of kOutputs outputs: two vectors of n0 and n1 valid lanes.
template <int kOutputs, class T>
HWY_INLINE void weighted_sum_strip(
    const OutputQuad& o, const RowList& values, int64_t c, int64_t n0, int64_t n1) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto start = [&](int i, int64_t offset, int64_t count) R1D_INLINE_LAMBDA {
    return hn::Mul(hn::Set(d, o.decay[i]), load_up_to(d, o.out[i] + c + offset, count));
  };
  constexpr int kB = kOutputs == 4 ? 1 : 0;
  constexpr int kE = kOutputs == 4 ? 2 : 0;
  constexpr int kF = kOutputs == 4 ? 3 : 0;
  VF a0 = start(0, 0, n0), a1 = start(0, lanes, n1);
  VF b0 = start(kB, 0, n0), b1 = start(kB, lanes, n1);
  VF e0 = start(kE, 0, n0), e1 = start(kE, lanes, n1);
  VF f0 = start(kF, 0, n0), f1 = start(kF, lanes, n1);
  for (int64_t k = 0; k < values.count; ++k) {
    const T* row = static_cast<const T*>(values.rows[k]) + c;
    const VF v0 = load_up_to(d, row, n0);
    const VF v1 = load_up_to(d, row + lanes, n1);
    const auto add = [&](int i, VF& s0, VF& s1) R1D_INLINE_LAMBDA {
      const VF w = hn::Set(d, o.weights[i][k]);
      s0 = hn::MulAdd(w, v0, s0);
      s1 = hn::MulAdd(w, v1, s1);
    };
    add(0, a0, a1);
    if constexpr (kOutputs == 4) {
      add(1, b0, b1);
      add(2, e0, e1);
      add(3, f0, f1);
    }
  }
  const auto finish = [&](int i, VF s0, VF s1) R1D_INLINE_LAMBDA {
    store_up_to(d, s0, o.out[i] + c, n0);
    store_up_to(d, s1, o.out[i] + c + lanes, n1);
  };
  finish(0, a0, a1);
  if constexpr (kOutputs == 4) {
    finish(1, b0, b1);
    finish(2, e0, e1);
    finish(3, f0, f1);
  }
}

template <int kOutputs, class T>
HWY_NOINLINE void weighted_sum_quad(const OutputQuad& o, const RowList& values, int64_t cols) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(DF()));
  int64_t c = 0;
  for (; c + 2 * lanes <= cols; c += 2 * lanes) {
    weighted_sum_strip<kOutputs, T>(o, values, c, lanes, lanes);
  }
  if (c == cols) return;
  const int64_t left = cols - c;
  weighted_sum_strip<kOutputs, T>(
      o, values, c, std::min(lanes, left), std::max<int64_t>(left - lanes, 0));
}

template <class T>
void weighted_sum(const RowList& values,
                  int64_t cols,
                  const float* weights,
                  int64_t weight_stride,
                  int64_t num_outputs,
                  const float* decay,
                  float* out,
                  int64_t out_stride) {
  for (int64_t first = 0; first < num_outputs; first += 4) {
    OutputQuad o;
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t n = std::min(first + i, num_outputs - 1);
      o.weights[i] = weights + n * weight_stride;
      o.decay[i] = decay[n];
      o.out[i] = out + n * out_stride;
    }
    if (num_outputs - first == 1) {
      weighted_sum_quad<1, T>(o, values, cols);
    } else {
      weighted_sum_quad<4, T>(o, values, cols);
    }
  }
}

void weighted_sum_impl(const RowList& values,
                       int64_t cols,
                       const float* weights,
                       int64_t weight_stride,
                       int64_t num_outputs,
                       const float* decay,
                       float* out,
                       int64_t out_stride) {
  const auto run = values.dtype == DType::kF32 ? weighted_sum<float> : weighted_sum<Bf16>;
  run(values, cols, weights, weight_stride, num_outputs, decay, out, out_stride);
}

float softmax_update_impl(float* scores, int64_t count, float scale, SoftmaxState& state) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF lowest = hn::Set(d, -HUGE_VALF);
  const int64_t padded = (count + lanes - 1) / lanes * lanes;
  std::fill(scores + count, scores + padded, -HUGE_VALF);
  VF max = lowest;
  for (int64_t k = 0; k < padded; k += lanes) max = hn::Max(max, hn::LoadU(d, scores + k));
  const float new_max = std::max(state.max, scale * hn::GetLane(hn::MaxOfLanes(d, max)));
  VF sum = hn::Zero(d);
  const VF shift = hn::Set(d, -new_max);
  for (int64_t k = 0; k < padded; k += lanes) {
    const VF x = hn::MulAdd(hn::Set(d, scale), hn::LoadU(d, scores + k), shift);
    // Exp gives 0 for a NaN; keep the NaN, so that the caller sees it.
    const VF p = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
    sum = hn::Add(sum, p);
    hn::StoreU(p, d, scores + k);
  }
  const float decay = std::exp(state.max - new_max);
  state.sum = state.sum * decay + hn::GetLane(hn::SumOfLanes(d, sum));
  state.max = new_max;
  return decay;
}

void rms_norm_impl(const float* x, const float* weight, float eps, int64_t cols, float* out) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VF squares = hn::Zero(d);
  for (int64_t k = 0; k < cols; k += lanes) {
    const VF v = load_up_to(d, x + k, cols - k);
    squares = hn::MulAdd(v, v, squares);
  }
  const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(cols);
  const VF factor = hn::Set(d, 1.0F / std::sqrt(mean + eps));
  for (int64_t k = 0; k < cols; k += lanes) {
    const VF normed = hn::Mul(load_up_to(d, x + k, cols - k), factor);
    store_up_to(d, hn::Mul(normed, load_up_to(d, weight + k, cols - k)), out + k, cols - k);
  }
}

void silu_mul_impl(float* gate, const float* up, int64_t count) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF one = hn::Set(d, 1.0F);
  for (int64_t k = 0; k < count; k += lanes) {
    const VF g = load_up_to(d, gate + k, count - k);
    // exp(88) is finite and silu(-88) = -88 / (1 + exp(88)) < 1e-36 in size.
    const VF e = hn::Exp(d, hn::Min(hn::Neg(g), hn::Set(d, 88.0F)));
    const VF silu = hn::Div(g, hn::Add(one, e));
    store_up_to(d, hn::Mul(silu, load_up_to(d, up + k, count - k)), gate + k, count - k);
  }
}

void add_scaled_impl(float* y, float factor, const float* x, int64_t count) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF f = hn::Set(d, factor);
  for (int64_t k = 0; k < count; k += lanes) {
    const VF sum = hn::MulAdd(f, load_up_to(d, x + k, count - k), load_up_to(d, y + k, count - k));
    store_up_to(d, sum, y + k, count - k);
  }
}

void scale_impl(float* y, float factor, const float* x, int64_t count) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t k = 0; k < count; k += lanes) {
    store_up_to(d, hn::Mul(hn::Set(d, factor), load_up_to(d, x + k, count - k)), y + k, count - k);
  }
}

template <class T>
void load_row_as(const void* row, int64_t cols, float* out) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* p = static_cast<const T*>(row);
  const VF factor = hn::Set(d, kStoredScale<T>);
  for (int64_t k = 0; k < cols; k += lanes) {
    store_up_to(d, hn::Mul(factor, load_up_to(d, p + k, cols - k)), out + k, cols - k);
  }
}

void load_row_impl(const void* row, DType dtype, int64_t cols, float* out) {
  switch (dtype) {
    case DType::kF32:
      return load_row_as<float>(row, cols, out);
    case DType::kBF16:
      return load_row_as<Bf16>(row, cols, out);
    case DType::kF8E4M3:
      return load_row_as<F8>(row, cols, out);
  }
}

const char* vector_target_impl() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace r1d::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace r1d::ops::cpu {

HWY_EXPORT(weighted_sum_impl);
HWY_EXPORT(softmax_update_impl);
HWY_EXPORT(rms_norm_impl);
HWY_EXPORT(silu_mul_impl);
HWY_EXPORT(add_scaled_impl);
HWY_EXPORT(scale_impl);
HWY_EXPORT(load_row_impl);
HWY_EXPORT(vector_target_impl);

void weighted_sum_rows(const RowList& values,
                       int64_t cols,
                       const float* weights,
                       int64_t weight_stride,
                       int64_t num_outputs,
                       const float* decay,
                       float* out,
                       int64_t out_stride) {
  R1D_DCHECK(values.dtype != DType::kF8E4M3);
  HWY_DYNAMIC_DISPATCH(weighted_sum_impl)
  (values, cols, weights, weight_stride, num_outputs, decay, out, out_stride);
}

float softmax_update(float* scores, int64_t count, float scale, SoftmaxState& state) {
  return HWY_DYNAMIC_DISPATCH(softmax_update_impl)(scores, count, scale, state);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t cols, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm_impl)(x, weight, eps, cols, out);
}

void silu_mul(float* gate, const float* up, int64_t count) {
  HWY_DYNAMIC_DISPATCH(silu_mul_impl)(gate, up, count);
}

void add_scaled(float* y, float factor, const float* x, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add_scaled_impl)(y, factor, x, count);
}

void scale(float* y, float factor, const float* x, int64_t count) {
  HWY_DYNAMIC_DISPATCH(scale_impl)(y, factor, x, count);
}

void load_row(const void* row, DType dtype, int64_t cols, float* out) {
  HWY_DYNAMIC_DISPATCH(load_row_impl)(row, dtype, cols, out);
}

const char* vector_target() {
  return HWY_DYNAMIC_DISPATCH(vector_target_impl)();
}

}  // namespace r1d::ops::cpu
#endif  // HWY_ONCE
