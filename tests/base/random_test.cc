// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/random.h"

#include <cmath>
#include <cstdint>
#include <set>

#include <gtest/gtest.h>

namespace r1d::base {
namespace {

// The first outputs of the reference SplitMix64 from state 0: its n-th output mixes n increments.
TEST(RandomTest, Mix64IsSplitMix64) {
  EXPECT_EQ(mix64(0), 0xE220A8397B1DCDAFULL);
  EXPECT_EQ(mix64(0x9E3779B97F4A7C15ULL), 0x6E789E6AA1B965F4ULL);
  EXPECT_EQ(mix64(2 * 0x9E3779B97F4A7C15ULL), 0x06C45D188009454FULL);
}

TEST(RandomTest, SameSeedAndCounterGiveTheSameBits) {
  static_assert(random_bits(1, 2) == random_bits(1, 2));
  EXPECT_NE(random_bits(1, 2), random_bits(2, 1));
}

TEST(RandomTest, NeighbouringStreamsShareNothing) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t counter = 0; counter < 100; ++counter) seen.insert(random_bits(seed, counter));
  }
  EXPECT_EQ(seen.size(), 10000U);
}

TEST(RandomTest, UnitIsUniformOverTheHalfOpenInterval) {
  constexpr int kDraws = 100000;
  int bins[10] = {};
  double sum = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = random_unit(7, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++bins[static_cast<int>(u * 10)];
    sum += u;
  }
  // Standard deviations: the mean's is 1 / sqrt(12 n) = 9e-4, a bin's sqrt(n * 0.09) = 95. Five
  // each.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 / std::sqrt(12.0 * kDraws));
  for (const int count : bins) EXPECT_NEAR(count, kDraws / 10, 5 * std::sqrt(kDraws * 0.09));
}

}  // namespace
}  // namespace r1d::base
