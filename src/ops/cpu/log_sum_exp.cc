// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/log_sum_exp.cc"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include "r1d/ops/cpu_ops.h"

HWY_BEFORE_NAMESPACE();
namespace r1d::ops::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Two sums side by side hide the latency of Exp; a lane adds a few thousand numbers of one sign at
// most, so rounding stays below 1e-4 of the sum.
float log_sum_exp_impl(const float* x, int64_t count) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t pairs_end = count / (2 * lanes) * (2 * lanes);
  V max0 = hn::Set(d, -HUGE_VALF);
  V max1 = max0;
  for (int64_t k = 0; k < pairs_end; k += 2 * lanes) {
    max0 = hn::Max(max0, hn::LoadU(d, x + k));
    max1 = hn::Max(max1, hn::LoadU(d, x + k + lanes));
  }
  float highest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1)));
  for (int64_t k = pairs_end; k < count; ++k) highest = std::max(highest, x[k]);
  const V shift = hn::Set(d, highest);
  V sum0 = hn::Zero(d);
  V sum1 = hn::Zero(d);
  for (int64_t k = 0; k < pairs_end; k += 2 * lanes) {
    sum0 = hn::Add(sum0, hn::Exp(d, hn::Sub(hn::LoadU(d, x + k), shift)));
    sum1 = hn::Add(sum1, hn::Exp(d, hn::Sub(hn::LoadU(d, x + k + lanes), shift)));
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (int64_t k = pairs_end; k < count; ++k) sum += std::exp(x[k] - highest);
  return highest + std::log(sum);
}

}  // namespace r1d::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace r1d::ops::cpu {
HWY_EXPORT(log_sum_exp_impl);

float log_sum_exp(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(log_sum_exp_impl)(x, count);
}
}  // namespace r1d::ops::cpu

namespace r1d::ops {

float log_sum_exp(std::span<const float> x) {
  return cpu::log_sum_exp(x.data(), static_cast<int64_t>(x.size()));
}

}  // namespace r1d::ops
#endif  // HWY_ONCE
