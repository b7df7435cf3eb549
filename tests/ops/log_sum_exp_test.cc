// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <ctime>
#include <random>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "r1d/ops/cpu_ops.h"

namespace r1d::ops {
namespace {

double in_double(const std::vector<float>& x) {
  const double highest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(static_cast<double>(value) - highest);
  return highest + std::log(sum);
}

std::vector<float> numbers(size_t count, float mean, float deviation) {
  std::mt19937 random(static_cast<unsigned>(count));
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> x(count);
  for (float& value : x) value = normal(random);
  return x;
}

TEST(LogSumExpTest, IsGoodToATenThousandthAtAnyLength) {
  for (const size_t count : {1U, 2U, 7U, 16U, 31U, 32U, 33U, 512U, 1000U, 129280U}) {
    for (const float deviation : {0.0F, 1.0F, 30.0F}) {
      const std::vector<float> x = numbers(count, 5, deviation);
      EXPECT_NEAR(log_sum_exp(x), in_double(x), 1e-4) << count << " of deviation " << deviation;
    }
  }
}

TEST(LogSumExpTest, StaysFiniteWhereExpWouldNot) {
  EXPECT_FLOAT_EQ(log_sum_exp(std::vector<float>(64, 1000.0F)), 1000 + std::log(64.0F));
  EXPECT_FLOAT_EQ(log_sum_exp(std::vector<float>{-3e38F, 3e38F}), 3e38F);
  EXPECT_FLOAT_EQ(log_sum_exp(std::vector<float>(3, -3e38F)), -3e38F);
}

double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// The best of several rounds.
template <typename Function>
double microseconds(const Function& function) {
  double best = 1;
  for (int round = 0; round < 20; ++round) {
    const double begin = thread_seconds();
    EXPECT_TRUE(std::isfinite(function()));
    best = std::min(best, thread_seconds() - begin);
  }
  return best * 1e6;
}

TEST(LogSumExpTest, TakesLessThanTheSumInDouble) {
  const std::vector<float> x = numbers(129280, 0, 3);
  const double fast = microseconds([&] { return log_sum_exp(x); });
  const double exact = microseconds([&] { return in_double(x); });
  fmt::print("log_sum_exp of {} numbers: {:.0f} us, in double {:.0f} us\n", x.size(), fast, exact);
  EXPECT_LT(fast, exact);
}

}  // namespace
}  // namespace r1d::ops
