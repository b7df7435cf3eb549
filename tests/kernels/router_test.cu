// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "kernels/router/router.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::from_bf16;
using test::random_floats;
using test::to_bf16;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const RouterRules kR1{256, 8, 8, 4, true, 2.5F};

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

// The rules, literally, for one token.
Choice choose(const float* logits, const float* bias, const RouterRules& rules) {
  const int size = rules.num_experts / rules.num_groups;
  std::vector<float> score(rules.num_experts);
  std::vector<float> choice(rules.num_experts);
  for (int e = 0; e < rules.num_experts; ++e) {
    score[e] = 1.0F / (1.0F + std::exp(-logits[e]));
    const float biased = score[e] + (bias != nullptr ? bias[e] : 0.0F);
    choice[e] = std::isnan(biased) ? -1e30F : biased;
  }
  if (rules.kept_groups < rules.num_groups) {
    std::vector<float> best_two(rules.num_groups);
    for (int g = 0; g < rules.num_groups; ++g) {
      std::vector<float> group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(group.rbegin(), group.rend());
      best_two[g] = size == 1 ? group[0] : group[0] + group[1];
    }
    // A group without two candidates stays never, one with an infinity of each sign (NaN) always.
    for (int i = 0; i < rules.kept_groups; ++i) {
      int best = -1;
      for (int g = 0; g < rules.num_groups; ++g) {
        if (best_two[g] > (best < 0 ? -kInfinity : best_two[best])) best = g;
      }
      if (best >= 0) best_two[best] = std::nanf("");
    }
    for (int g = 0; g < rules.num_groups; ++g) {
      if (!std::isnan(best_two[g])) std::fill_n(choice.begin() + g * size, size, -kInfinity);
    }
  }
  Choice out;
  float sum = 0;
  for (int slot = 0; slot < rules.top_k; ++slot) {
    const auto best = std::max_element(choice.begin(), choice.end()) - choice.begin();  // the first
    out.experts.push_back(static_cast<int32_t>(best));
    out.weights.push_back(score[best]);
    sum += score[best];
    choice[best] = -kInfinity;
  }
  const float factor =
      rules.normalize ? rules.scaling_factor / (sum + 1e-20F) : rules.scaling_factor;
  for (float& w : out.weights) w *= factor;
  return out;
}

// Distance in `choice` that the last ulp of exp could bridge.
bool nearly_tied(const float* logits, const float* bias, int32_t a, int32_t b) {
  const auto value = [&](int32_t e) {
    return 1.0 / (1.0 + std::exp(-double{logits[e]})) + (bias != nullptr ? bias[e] : 0.0F);
  };
  return std::abs(value(a) - value(b)) < 2e-6;
}

void expect_choice(const std::vector<int32_t>& experts,
                   const std::vector<float>& weights,
                   const std::vector<float>& logits,
                   const float* bias,
                   const RouterRules& rules,
                   int num_tokens,
                   float tolerance,
                   bool exact_experts) {
  int off = 0;
  for (int t = 0; t < num_tokens; ++t) {
    const float* row = logits.data() + static_cast<size_t>(t) * rules.num_experts;
    const Choice want = choose(row, bias, rules);
    for (int s = 0; s < rules.top_k; ++s) {
      const size_t i = static_cast<size_t>(t) * rules.top_k + s;
      if (experts[i] != want.experts[s]) {
        ASSERT_FALSE(exact_experts)
            << "token " << t << " slot " << s << ": " << experts[i] << " for " << want.experts[s];
        ++off;
        if (nearly_tied(row, bias, experts[i], want.experts[s])) continue;
        break;  // a near tie earlier, of groups or experts, moved the rest
      }
      if (std::isnan(want.weights[s])) {
        ASSERT_TRUE(std::isnan(weights[i])) << "token " << t << " slot " << s;
      } else {
        ASSERT_NEAR(weights[i], want.weights[s], tolerance * std::abs(want.weights[s]) + 1e-30F)
            << "token " << t << " slot " << s;
      }
    }
  }
  EXPECT_LE(off, num_tokens * rules.top_k / 100 + 1) << "more than near ties explain";
}

Choice device_choice(const std::vector<float>& logits,
                     const std::vector<float>& bias,
                     const RouterRules& rules,
                     int num_tokens) {
  DeviceArray<float> d_logits(logits);
  DeviceArray<float> d_bias(bias.empty() ? std::vector<float>(1) : bias);
  DeviceArray<int32_t> experts(static_cast<size_t>(num_tokens) * rules.top_k);
  DeviceArray<float> weights(static_cast<size_t>(num_tokens) * rules.top_k);
  EXPECT_EQ(route_from_logits(d_logits.data(),
                              rules.num_experts,
                              bias.empty() ? nullptr : d_bias.data(),
                              num_tokens,
                              rules,
                              {experts.data(), weights.data()},
                              {}),
            cudaSuccess);
  return {experts.download(), weights.download()};
}

TEST(RouterTest, ChoosesAsTheRulesSayForManyShapes) {
  R1D_NEEDS_GPU(90);
  const RouterRules shapes[] = {kR1,
                                {256, 8, 1, 1, true, 1},
                                {4, 2, 1, 1, true, 1},
                                {8, 2, 2, 1, false, 1.5F},
                                {8, 8, 8, 8, true, 1},
                                {16, 4, 4, 2, true, 2},
                                {12, 3, 4, 2, true, 1},
                                {16, 2, 16, 3, true, 1},
                                {64, 6, 8, 3, false, 16},
                                {160, 6, 8, 3, true, 16},
                                {160, 8, 5, 3, true, 1},
                                {384, 8, 1, 1, true, 2.8F},
                                {512, 32, 32, 7, true, 1},
                                {512, 32, 1, 1, true, 1},
                                {510, 10, 2, 1, true, 1},
                                {510, 10, 30, 4, true, 1},  // rows of 17 in places for 20
                                {256, 8, 4, 2, true, 1},
                                {256, 8, 8, 8, true, 1},
                                {256, 32, 8, 1, true, 1},
                                {128, 6, 4, 3, true, 2},
                                {256, 8, 8, 6, false, 1},
                                {1, 1, 1, 1, true, 1}};
  uint64_t seed = 1;
  for (const RouterRules& rules : shapes) {
    for (const int num_tokens : {1, 7, 1000}) {
      SCOPED_TRACE(testing::Message() << rules.num_experts << " experts, " << rules.num_groups
                                      << " groups, " << num_tokens << " tokens");
      const auto logits =
          random_floats(static_cast<size_t>(num_tokens) * rules.num_experts, ++seed, 2);
      const auto bias = random_floats(rules.num_experts, ++seed, 0.1F);
      for (const bool biased : {false, true}) {
        const Choice got =
            device_choice(logits, biased ? bias : std::vector<float>{}, rules, num_tokens);
        expect_choice(got.experts,
                      got.weights,
                      logits,
                      biased ? bias.data() : nullptr,
                      rules,
                      num_tokens,
                      1e-5F,
                      false);
      }
    }
  }
}

TEST(RouterTest, EqualScoresGoToTheLowestIndex) {
  R1D_NEEDS_GPU(90);
  constexpr int kTokens = 300;
  auto logits = random_floats(static_cast<size_t>(kTokens) * kR1.num_experts, 3);
  for (float& v : logits) v = std::round(v);  // few distinct values; equal ones have equal scores
  const Choice got = device_choice(logits, {}, kR1, kTokens);
  expect_choice(got.experts, got.weights, logits, nullptr, kR1, kTokens, 1e-5F, true);
  const Choice zeros = device_choice(std::vector<float>(256, 0.0F), {}, kR1, 1);
  EXPECT_EQ(zeros.experts, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(RouterTest, NegativeZeroChoiceTiesWithZero) {
  R1D_NEEDS_GPU(90);
  const RouterRules rules{4, 2, 1, 1, false, 1};
  const std::vector<float> logits = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};  // scores 0
  const Choice got = device_choice(logits, {-0.0F, 0.0F, -0.0F, 0.0F}, rules, 1);
  EXPECT_EQ(got.experts, (std::vector<int32_t>{0, 1}));
}

TEST(RouterTest, NotANumberRoutesAfterEveryRealScore) {
  R1D_NEEDS_GPU(90);
  constexpr int kTokens = 20;
  auto logits = random_floats(static_cast<size_t>(kTokens) * kR1.num_experts, 5);
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::nanf("");
  for (int e = 0; e < 256; ++e) logits[e] = std::nanf("");  // a lost token
  for (int e = 256; e < 512; ++e) logits[e] = e % 5 == 0 ? kInfinity : -kInfinity;
  const Choice got = device_choice(logits, {}, kR1, kTokens);
  expect_choice(got.experts, got.weights, logits, nullptr, kR1, kTokens, 1e-5F, false);
  EXPECT_EQ(std::vector<int32_t>(got.experts.begin(), got.experts.begin() + 8),
            (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

// Rules whose tokens take every path: groups of a warp, wider, narrower and ragged ones, none; more
// and fewer candidates than a warp.
const RouterRules kPaths[] = {kR1,
                              {256, 8, 1, 1, true, 1},
                              {256, 8, 4, 2, true, 2.5F},
                              {256, 8, 8, 1, true, 1},
                              {256, 8, 8, 8, false, 1},
                              {384, 8, 1, 1, true, 2.8F},
                              {72, 4, 8, 3, true, 1},
                              {510, 10, 30, 4, true, 1},
                              {512, 32, 32, 7, true, 1},
                              {512, 32, 2, 1, true, 1},
                              {16, 4, 16, 5, true, 1},
                              {12, 3, 4, 2, true, 1}};

// Values that both sides have to the bit, so that ties are ties.
std::vector<float> drawn(size_t count, const std::vector<float>& from, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = from[random() % from.size()];
  return values;
}

TEST(RouterTest, TiesInfinitiesAndLostScoresGoByTheRulesToTheBit) {
  R1D_NEEDS_GPU(90);
  constexpr int kTokens = 200;
  const float lost = std::nanf("");
  const std::vector<float> logits_from[] = {{0},  // scores 0, 1/2 and 1
                                            {0, kInfinity},
                                            {-kInfinity, 0, kInfinity},
                                            {-kInfinity, -kInfinity, -kInfinity, 0},
                                            {0, 0, kInfinity, lost},
                                            {lost}};
  const std::vector<float> biases_from[] = {{0},
                                            {0, -0.0F, 0.25F, -0.5F, -1},
                                            {0, -kInfinity},
                                            {0, 0.5F, -kInfinity, -kInfinity, -kInfinity},
                                            {1, -kInfinity, kInfinity, lost},
                                            {-kInfinity}};
  uint32_t seed = 0;
  for (const RouterRules& rules : kPaths) {
    for (const auto& from : logits_from) {
      const auto logits = drawn(static_cast<size_t>(kTokens) * rules.num_experts, from, ++seed);
      for (const auto& bias_from : biases_from) {
        SCOPED_TRACE(testing::Message() << rules.num_experts << " experts, " << rules.num_groups
                                        << " groups, draw " << seed);
        const auto bias = drawn(rules.num_experts, bias_from, ++seed);
        const Choice got = device_choice(logits, bias, rules, kTokens);
        expect_choice(got.experts, got.weights, logits, bias.data(), rules, kTokens, 1e-6F, true);
      }
    }
  }
}

// Few candidates: one expert in 40 is left.
TEST(RouterTest, FewerCandidatesThanSlotsLeaveTheFirstExpert) {
  R1D_NEEDS_GPU(90);
  constexpr int kTokens = 20;
  for (const RouterRules& rules : kPaths) {
    std::vector<float> bias(rules.num_experts, -kInfinity);
    for (int e = 7; e < rules.num_experts; e += 40) bias[e] = 0;
    const std::vector<float> logits(static_cast<size_t>(kTokens) * rules.num_experts, 0.0F);
    const Choice got = device_choice(logits, bias, rules, kTokens);
    expect_choice(got.experts, got.weights, logits, bias.data(), rules, kTokens, 1e-6F, true);
  }
}

// Checks lists against [T, k] experts.
void expect_lists(const std::vector<int32_t>& experts,
                  int num_tokens,
                  int live,
                  int top_k,
                  int first,
                  int num_local,
                  const std::vector<int32_t>& num_blocks,
                  const std::vector<ExpertBlock>& blocks,
                  const std::vector<int32_t>& entries) {
  int block = 0;
  int begin = 0;
  int group = 0;
  const int size = token_block_size(num_tokens);
  for (int e = 0; e < num_local; ++e) {
    std::vector<int32_t> mine;
    for (int i = 0; i < live * top_k; ++i) {
      if (experts[i] - first == e) mine.push_back(i);
    }
    for (size_t from = 0; from < mine.size(); from += size) {
      const int count = std::min<int>(size, static_cast<int>(mine.size() - from));
      ASSERT_LT(block, num_blocks[0]);
      const ExpertBlock& b = blocks[block++];
      ASSERT_EQ(b.expert, e);
      ASSERT_EQ(b.count, count);
      ASSERT_EQ(b.begin, begin + static_cast<int>(from));
      ASSERT_EQ(b.group, group);
      group += (count + 7) / 8;
      for (int i = 0; i < count; ++i)
        ASSERT_EQ(entries[b.begin + i], mine[from + i]) << "expert " << e;
    }
    begin += static_cast<int>(mine.size());
  }
  ASSERT_EQ(block, num_blocks[0]);
  ASSERT_LE(block, max_expert_blocks(num_tokens, top_k, num_local));
  ASSERT_LE(group, max_expert_groups(num_tokens, top_k, num_local));
}

struct Lists {
  Lists(int num_tokens, int top_k, int num_local)
      : num_blocks(1),
        blocks(max_expert_blocks(num_tokens, top_k, num_local)),
        entries(static_cast<size_t>(num_tokens) * top_k) {}
  ExpertLists view() { return {num_blocks.data(), blocks.data(), entries.data()}; }
  DeviceArray<int32_t> num_blocks;
  DeviceArray<ExpertBlock> blocks;
  DeviceArray<int32_t> entries;
};

TEST(RouterTest, ListsHoldEveryLocalEntryInOrder) {
  R1D_NEEDS_GPU(90);
  struct Shape {
    int tokens, top_k, experts, first, num_local, live;
  };
  const Shape shapes[] = {{1, 8, 256, 0, 256, 1},
                          {8, 8, 256, 0, 256, 5},
                          {64, 8, 256, 64, 32, 64},
                          {256, 8, 256, 0, 256, 256},
                          {256, 8, 8, 0, 8, 256},
                          {200, 32, 512, 0, 512, 199},
                          {9, 2, 300, 0, 257, 9},
                          {33, 1, 1, 0, 1, 33},
                          {16, 8, 256, 255, 1, 0}};
  for (const Shape& z : shapes) {
    SCOPED_TRACE(testing::Message() << z.tokens << " tokens, " << z.experts << " experts");
    std::mt19937 random(7);
    std::vector<int32_t> experts;
    std::vector<int32_t> all(z.experts);
    std::iota(all.begin(), all.end(), 0);
    for (int t = 0; t < z.tokens; ++t) {
      std::shuffle(all.begin(), all.end(), random);
      experts.insert(experts.end(), all.begin(), all.begin() + z.top_k);
    }
    DeviceArray<int32_t> d_experts(experts);
    DeviceArray<int32_t> live(std::vector<int32_t>{z.live});
    Lists lists(z.tokens, z.top_k, z.num_local);
    ASSERT_EQ(list_experts(d_experts.data(),
                           z.tokens,
                           z.top_k,
                           {z.first, z.num_local, z.live < z.tokens ? live.data() : nullptr},
                           lists.view(),
                           {}),
              cudaSuccess);
    expect_lists(experts,
                 z.tokens,
                 z.live,
                 z.top_k,
                 z.first,
                 z.num_local,
                 lists.num_blocks.download(),
                 lists.blocks.download(),
                 lists.entries.download());
  }
}

// As where no candidate is left for a token but the first expert.
TEST(RouterTest, ListsTakeATokensExpertTwice) {
  R1D_NEEDS_GPU(90);
  for (const int tokens : {2, 3, 70}) {
    std::vector<int32_t> experts;
    for (int i = 0; i < tokens * 4; ++i) experts.push_back(i % 4 == 0 ? i % 7 : 0);
    DeviceArray<int32_t> d_experts(experts);
    Lists lists(tokens, 4, 8);
    ASSERT_EQ(list_experts(d_experts.data(), tokens, 4, {0, 8, nullptr}, lists.view(), {}),
              cudaSuccess);
    expect_lists(experts,
                 tokens,
                 tokens,
                 4,
                 0,
                 8,
                 lists.num_blocks.download(),
                 lists.blocks.download(),
                 lists.entries.download());
  }
  // All candidates dropped: expert 0 in every slot, with and without lists.
  DeviceArray<uint16_t> weight(std::vector<uint16_t>(16 * 64, 0));
  DeviceArray<float> bias(std::vector<float>(16, -kInfinity));
  for (const int tokens : {2, 8, 9, 40}) {
    DeviceArray<uint16_t> x(std::vector<uint16_t>(tokens * 64, 0));
    DeviceArray<int32_t> chosen(tokens * 4);
    DeviceArray<float> weights(tokens * 4);
    DeviceArray<uint8_t> workspace(route_decode_workspace(tokens, 64, 16), 0);
    Lists lists(tokens, 4 * 4, 16);
    ASSERT_EQ(route_decode(weight.data(),
                           RouterWeightType::kBf16,
                           bias.data(),
                           reinterpret_cast<const __nv_bfloat16*>(x.data()),
                           tokens,
                           64,
                           {16, 4, 1, 1, true, 1},
                           {0, 16, nullptr},
                           {chosen.data(), weights.data()},
                           lists.view(),
                           workspace.data(),
                           {}),
              cudaSuccess);
    const std::vector<int32_t> zeros(tokens * 4, 0);
    EXPECT_EQ(chosen.download(), zeros);
    if (makes_lists(tokens)) {
      expect_lists(zeros,
                   tokens,
                   tokens,
                   4,
                   0,
                   16,
                   lists.num_blocks.download(),
                   lists.blocks.download(),
                   lists.entries.download());
    }
  }
}

struct Decode {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

// Runs route_decode three times on one workspace and checks choice and lists.
Decode check_decode(int num_tokens,
                    int64_t hidden,
                    const RouterRules& rules,
                    bool f32,
                    int first,
                    int num_local,
                    int seed,
                    const std::vector<uint16_t>* rows = nullptr) {
  SCOPED_TRACE(testing::Message() << num_tokens << " tokens, " << hidden << " wide, "
                                  << rules.num_experts << " experts, f32 " << f32);
  const auto x_bits = rows != nullptr
                          ? *rows
                          : to_bf16(random_floats(static_cast<size_t>(num_tokens) * hidden, seed));
  const auto x = from_bf16(x_bits);
  auto weight = random_floats(static_cast<size_t>(rules.num_experts) * hidden,
                              1000 + seed % 10,
                              2 / std::sqrt(float(hidden)));
  const auto weight_bits = to_bf16(weight);
  if (!f32) weight = from_bf16(weight_bits);
  const auto bias = random_floats(rules.num_experts, seed + 2, 0.05F);
  std::vector<float> logits(static_cast<size_t>(num_tokens) * rules.num_experts);
  for (int t = 0; t < num_tokens; ++t) {
    for (int e = 0; e < rules.num_experts; ++e) {
      double sum = 0;
      for (int64_t k = 0; k < hidden; ++k)
        sum += double{x[t * hidden + k]} * weight[e * hidden + k];
      logits[static_cast<size_t>(t) * rules.num_experts + e] = static_cast<float>(sum);
    }
  }
  DeviceArray<uint16_t> d_x(x_bits);
  DeviceArray<float> d_f32(weight);
  DeviceArray<uint16_t> d_bf16(weight_bits);
  DeviceArray<float> d_bias(bias);
  DeviceArray<int32_t> experts(static_cast<size_t>(num_tokens) * rules.top_k);
  DeviceArray<float> weights(static_cast<size_t>(num_tokens) * rules.top_k);
  DeviceArray<uint8_t> workspace(route_decode_workspace(num_tokens, hidden, rules.num_experts));
  workspace.poison(0);
  Lists lists(num_tokens, rules.top_k, num_local);
  Decode out;
  for (int run = 0; run < 3; ++run) {
    experts.poison();
    lists.entries.poison();
    EXPECT_EQ(route_decode(f32 ? static_cast<void*>(d_f32.data()) : d_bf16.data(),
                           f32 ? RouterWeightType::kF32 : RouterWeightType::kBf16,
                           d_bias.data(),
                           reinterpret_cast<const __nv_bfloat16*>(d_x.data()),
                           num_tokens,
                           hidden,
                           rules,
                           {first, num_local, nullptr},
                           {experts.data(), weights.data()},
                           lists.view(),
                           workspace.data(),
                           {nullptr, run > 0}),
              cudaSuccess);
    out = {experts.download(), weights.download()};
    expect_choice(out.experts, out.weights, logits, bias.data(), rules, num_tokens, 2e-5F, false);
    if (makes_lists(num_tokens)) {
      expect_lists(out.experts,
                   num_tokens,
                   num_tokens,
                   rules.top_k,
                   first,
                   num_local,
                   lists.num_blocks.download(),
                   lists.blocks.download(),
                   lists.entries.download());
    }
  }
  return out;
}

TEST(RouterTest, DecodeRoutesR1) {
  R1D_NEEDS_GPU(90);
  for (const int num_tokens : {1, 2, 4, 5, 8, 9, 16, 17, 64, 65, 128, 129, 256}) {
    check_decode(num_tokens, 7168, kR1, false, 0, 256, 10 * num_tokens);
  }
  check_decode(8, 7168, kR1, true, 32, 32, 99);
}

// More blocks than a GPU holds: those that compute do not choose.
TEST(RouterTest, DecodeServesWideModels) {
  R1D_NEEDS_GPU(90);
  const RouterRules rules{512, 8, 8, 4, true, 1};
  for (const int num_tokens : {1, 9, 100}) {
    check_decode(num_tokens, 7168, rules, false, 0, 512, 600 + num_tokens);
  }
  check_decode(20, 7168, {384, 8, 1, 1, true, 2.8F}, false, 0, 384, 700);
}

TEST(RouterTest, DecodeServesSmallAndOddSizes) {
  R1D_NEEDS_GPU(90);
  for (const bool f32 : {false, true}) {
    check_decode(3, 64, {4, 2, 1, 1, true, 1}, f32, 0, 4, 100);
    check_decode(17, 8, {16, 4, 4, 2, true, 2}, f32, 8, 8, 110);
    check_decode(65, 232, {64, 6, 8, 3, false, 16}, f32, 0, 64, 120);
    check_decode(256, 1000, {72, 4, 8, 3, true, 1}, f32, 0, 72, 130);
    check_decode(5, 512, {512, 32, 32, 7, true, 1}, f32, 0, 512, 140);
  }
}

// Rows of zeros: biases alone decide, with ties and without candidates, in every form.
TEST(RouterTest, DecodeBreaksTiesAsTheRulesSay) {
  R1D_NEEDS_GPU(90);
  constexpr int kHidden = 1024;
  const std::vector<float> biases_from[] = {
      {0}, {0, -0.0F, 0.25F, -0.5F}, {0, -kInfinity, -kInfinity}, {-kInfinity, 1, kInfinity}};
  for (const RouterRules& rules : kPaths) {
    DeviceArray<uint16_t> weight(std::vector<uint16_t>(rules.num_experts * kHidden, 0));
    for (const int tokens : {1, 3, 4, 5, 16, 20, 130, 256}) {
      const std::vector<float> logits(static_cast<size_t>(tokens) * rules.num_experts, 0.0F);
      DeviceArray<uint16_t> x(std::vector<uint16_t>(tokens * kHidden, 0));
      DeviceArray<int32_t> experts(tokens * rules.top_k);
      DeviceArray<float> weights(tokens * rules.top_k);
      DeviceArray<uint8_t> workspace(route_decode_workspace(tokens, kHidden, rules.num_experts), 0);
      Lists lists(tokens, rules.top_k, rules.num_experts);
      for (const auto& from : biases_from) {
        SCOPED_TRACE(testing::Message() << rules.num_experts << " experts, " << rules.num_groups
                                        << " groups, " << tokens << " tokens");
        const auto bias = drawn(rules.num_experts, from, tokens);
        DeviceArray<float> d_bias(bias);
        experts.poison();
        ASSERT_EQ(route_decode(weight.data(),
                               RouterWeightType::kBf16,
                               d_bias.data(),
                               reinterpret_cast<const __nv_bfloat16*>(x.data()),
                               tokens,
                               kHidden,
                               rules,
                               {0, rules.num_experts, nullptr},
                               {experts.data(), weights.data()},
                               lists.view(),
                               workspace.data(),
                               {}),
                  cudaSuccess);
        const auto chosen = experts.download();
        expect_choice(chosen, weights.download(), logits, bias.data(), rules, tokens, 1e-6F, true);
        if (makes_lists(tokens)) {
          expect_lists(chosen,
                       tokens,
                       tokens,
                       rules.top_k,
                       0,
                       rules.num_experts,
                       lists.num_blocks.download(),
                       lists.blocks.download(),
                       lists.entries.download());
        }
      }
    }
  }
}

TEST(RouterTest, ATokensRouteDoesNotDependOnTheOthers) {
  R1D_NEEDS_GPU(90);
  const auto rows = to_bf16(random_floats(256 * 7168, 77));
  const Decode all = check_decode(256, 7168, kR1, false, 0, 256, 500, &rows);
  for (const int count : {1, 5, 16, 17, 64, 128}) {
    const std::vector<uint16_t> first(rows.begin(), rows.begin() + count * 7168);
    const Decode some = check_decode(count, 7168, kR1, false, 0, 256, 500, &first);
    for (int i = 0; i < count * 8; ++i) {
      ASSERT_EQ(some.experts[i], all.experts[i]) << count << " tokens, entry " << i;
      ASSERT_EQ(some.weights[i], all.weights[i]) << count << " tokens, entry " << i;  // to the bit
    }
  }
}

struct LogitsShape {
  int32_t tokens;
  int64_t hidden;
  int32_t experts;
  int64_t x_gap;  // unused values behind each row
  int64_t logits_gap;
};

TEST(RouterTest, LogitsOfManyMatchTheReference) {
  R1D_NEEDS_GPU(90);
  const LogitsShape shapes[] = {{1, 8, 8, 0, 0},
                                {64, 64, 256, 0, 0},
                                {65, 200, 160, 8, 2},
                                {129, 328, 256, 0, 0},
                                {300, 136, 512, 0, 0},
                                {700, 1024, 72, 24, 6},
                                {8192, 7168, 256, 0, 0}};
  std::mt19937 random(5);
  for (const LogitsShape& s : shapes) {
    SCOPED_TRACE(testing::Message()
                 << s.tokens << " tokens, D " << s.hidden << ", E " << s.experts);
    const int64_t x_stride = s.hidden + s.x_gap;
    const int64_t stride = s.experts + s.logits_gap;
    const auto x = to_bf16(random_floats(s.tokens * x_stride, 1));
    const auto weight = to_bf16(random_floats(s.experts * s.hidden, 2));
    DeviceArray<uint16_t> d_x(x);
    DeviceArray<uint16_t> d_weight(weight);
    DeviceArray<float> d_logits(s.tokens * stride);
    for (const bool dependent : {false, true}) {
      d_logits.poison();
      ASSERT_EQ(route_logits(reinterpret_cast<const __nv_bfloat16*>(d_weight.data()),
                             reinterpret_cast<const __nv_bfloat16*>(d_x.data()),
                             x_stride,
                             s.tokens,
                             s.hidden,
                             s.experts,
                             d_logits.data(),
                             stride,
                             {.dependent = dependent}),
                cudaSuccess);
      const std::vector<float> logits = d_logits.download();
      for (int64_t i = 0; i < s.tokens * stride; ++i) {
        ASSERT_EQ(std::isfinite(logits[i]), i % stride < s.experts)
            << "token " << i / stride << " expert " << i % stride;
      }
      for (int i = 0; i < 2000; ++i) {
        const int64_t t = i < 100 ? s.tokens - 1 : random() % s.tokens;
        const int64_t e = random() % s.experts;
        double want = 0;
        for (int64_t k = 0; k < s.hidden; ++k) {
          want += double{bf16_to_f32(x[t * x_stride + k])} * bf16_to_f32(weight[e * s.hidden + k]);
        }
        ASSERT_NEAR(logits[t * stride + e], want, 5e-5 * std::sqrt(double(s.hidden)) + 1e-6)
            << "token " << t << " expert " << e;
      }
    }
  }
}

TEST(RouterTest, ATokensLogitsDoNotDependOnItsPlace) {
  R1D_NEEDS_GPU(90);
  constexpr int kHidden = 1000;
  const auto x = to_bf16(random_floats(200 * kHidden, 3));
  DeviceArray<uint16_t> d_x(x);
  DeviceArray<uint16_t> d_weight(to_bf16(random_floats(256 * kHidden, 4)));
  const auto logits_from = [&](int first) {
    DeviceArray<float> logits((200 - first) * 256);
    EXPECT_EQ(route_logits(reinterpret_cast<const __nv_bfloat16*>(d_weight.data()),
                           reinterpret_cast<const __nv_bfloat16*>(d_x.data()) + first * kHidden,
                           kHidden,
                           200 - first,
                           kHidden,
                           256,
                           logits.data(),
                           256,
                           {}),
              cudaSuccess);
    return logits.download();
  };
  const std::vector<float> all = logits_from(0);
  for (const int first : {1, 70, 199}) {
    const std::vector<float> some = logits_from(first);
    ASSERT_EQ(std::memcmp(some.data(), all.data() + first * 256, some.size() * sizeof(float)), 0)
        << first;
  }
}

TEST(RouterTest, RefusesWhatItDoesNotServe) {
  const auto bad = [](const RouterRules& rules) {
    return route_from_logits(nullptr, rules.num_experts, nullptr, 1, rules, {}, {});
  };
  EXPECT_EQ(bad({513, 8, 1, 1, true, 1}), cudaErrorInvalidValue);
  EXPECT_EQ(bad({256, 33, 1, 1, true, 1}), cudaErrorInvalidValue);
  EXPECT_EQ(bad({256, 8, 7, 4, true, 1}), cudaErrorInvalidValue);
  EXPECT_EQ(bad({16, 8, 4, 1, true, 1}), cudaErrorInvalidValue);
  const auto logits = [](int32_t tokens, int64_t hidden, int32_t experts, int64_t stride) {
    return route_logits(nullptr, nullptr, hidden, tokens, hidden, experts, nullptr, stride, {});
  };
  EXPECT_EQ(logits(1, 64, 257, 264), cudaErrorInvalidValue);
  EXPECT_EQ(logits(1, 65, 256, 256), cudaErrorInvalidValue);
  EXPECT_EQ(logits(1, 64, 256, 255), cudaErrorInvalidValue);
  EXPECT_EQ(logits(0, 64, 256, 256), cudaSuccess);  // nothing to do
  EXPECT_EQ(route_from_logits(nullptr, 256, nullptr, 0, kR1, {}, {}),
            cudaSuccess);  // nothing to do
}

}  // namespace
}  // namespace r1d::kernels
