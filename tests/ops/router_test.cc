// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/router.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/random.h"

#include "tests/ops/reference.h"

namespace r1d::ops::cpu {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice choose(const std::vector<float>& logits,
              const std::vector<float>& bias,
              const RouterOptions& options) {
  Choice c{std::vector<int32_t>(static_cast<size_t>(options.top_k)),
           std::vector<float>(static_cast<size_t>(options.top_k))};
  std::vector<float> scratch(static_cast<size_t>(router_scratch(options)));
  choose_experts(
      logits.data(), bias.data(), options, scratch.data(), c.experts.data(), c.weights.data());
  return c;
}

// Indices of the `count` largest values, the lower index first among equals.
std::vector<int32_t> top(const std::vector<float>& values, int32_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(count));
  return order;
}

// The definition, by sorting.
Choice reference(const std::vector<float>& logits,
                 const std::vector<float>& bias,
                 const RouterOptions& o) {
  std::vector<float> score(logits.size());
  std::vector<float> choice(logits.size());
  for (size_t e = 0; e < logits.size(); ++e) {
    score[e] = 1.0F / (1.0F + std::exp(-logits[e]));
    choice[e] = score[e] + bias[e];
  }
  const auto size = static_cast<size_t>(o.num_experts / o.num_groups);
  std::vector<float> groups;
  for (int32_t g = 0; g < o.num_groups; ++g) {
    std::vector<float> members(choice.begin() + g * static_cast<int64_t>(size),
                               choice.begin() + (g + 1) * static_cast<int64_t>(size));
    std::sort(members.begin(), members.end(), std::greater<>());
    groups.push_back(size == 1 ? members[0] : members[0] + members[1]);
  }
  const std::vector<int32_t> kept = top(groups, o.kept_groups);
  for (size_t e = 0; e < choice.size(); ++e) {
    const auto group = static_cast<int32_t>(e / size);
    if (std::find(kept.begin(), kept.end(), group) == kept.end()) {
      choice[e] = -std::numeric_limits<float>::infinity();
    }
  }
  Choice c{top(choice, o.top_k), {}};
  double sum = 1e-20;
  for (const int32_t e : c.experts) sum += score[static_cast<size_t>(e)];
  for (const int32_t e : c.experts) {
    c.weights.push_back(static_cast<float>(score[static_cast<size_t>(e)] /
                                           (o.normalize ? sum : 1.0) * o.scaling_factor));
  }
  return c;
}

const RouterOptions kR1{256, 8, 8, 4, true, 2.5F};

TEST(RouterTest, MatchesTheDefinitionOnRandomInputsWithTies) {
  const RouterOptions options[] = {kR1,
                                   {18, 4, 6, 3, true, 1.5F},
                                   {16, 4, 1, 1, false, 1.0F},
                                   {64, 6, 8, 3, false, 16.0F},
                                   {8, 2, 8, 4, true, 1.0F}};
  for (const RouterOptions& o : options) {
    for (uint64_t seed = 0; seed < 300; ++seed) {
      SCOPED_TRACE("experts " + std::to_string(o.num_experts) + " seed " + std::to_string(seed));
      const auto n = static_cast<size_t>(o.num_experts);
      std::vector<float> logits = test::random_floats(n, seed, 3);
      std::vector<float> bias = test::random_floats(n, seed + 1000, 2);  // negative sums too
      if (seed % 3 == 0) {  // coarse values: many exact ties, within and between groups
        for (float& l : logits) l = std::round(l);
        for (float& b : bias) b = std::round(b);
      }
      const Choice want = reference(logits, bias, o);
      const Choice got = choose(logits, bias, o);
      ASSERT_EQ(got.experts, want.experts);
      for (size_t i = 0; i < want.weights.size(); ++i) {
        ASSERT_NEAR(got.weights[i], want.weights[i], 1e-6 * want.weights[i]);
      }
    }
  }
}

TEST(RouterTest, AllEqualTakesTheLowestIndices) {
  const Choice c = choose(std::vector<float>(256, 0.5F), std::vector<float>(256, 0.0F), kR1);
  EXPECT_EQ(c.experts, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(RouterTest, ADroppedGroupNeverWinsAgainstNegativeScores) {
  // Groups of 2; group 0 has one good expert, groups 1 and 2 the better pairs although all are
  // negative.
  const RouterOptions o{6, 2, 3, 1, false, 1.0F};
  const std::vector<float> logits(6, 0.0F);
  const std::vector<float> bias = {-1.0F, -9.0F, -2.0F, -2.1F, -3.0F, -3.0F};
  EXPECT_EQ(choose(logits, bias, o).experts, (std::vector<int32_t>{2, 3}));
}

TEST(RouterTest, TheBiasChoosesButNeverWeighs) {
  const RouterOptions o{4, 1, 1, 1, false, 1.0F};
  const Choice c = choose({3, 2, 1, 0}, {0, 0, 0, 5}, o);
  EXPECT_EQ(c.experts[0], 3);
  EXPECT_EQ(c.weights[0], 0.5F);
}

TEST(RouterTest, NanLogitsStillGiveDistinctValidExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const size_t numbers : {0, 3, 200}) {
    std::vector<float> logits(256, nan);
    std::fill_n(logits.begin(), numbers, 1.0F);
    const Choice c = choose(logits, std::vector<float>(256, 0.1F), kR1);
    const std::set<int32_t> distinct(c.experts.begin(), c.experts.end());
    EXPECT_EQ(distinct.size(), 8U);
    EXPECT_GE(*distinct.begin(), 0);
    EXPECT_LT(*distinct.rbegin(), 256);
  }
}

}  // namespace
}  // namespace r1d::ops::cpu
