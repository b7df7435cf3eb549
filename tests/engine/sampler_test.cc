// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/engine/sampling.h"

namespace r1d::engine {
namespace {

constexpr uint64_t kSeed = 20261122;

std::vector<float> random_logits(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Samples on a copy: the sampler writes into its input.
SampledToken sample(std::vector<float> logits,
                    const SamplingParams& params,
                    const std::vector<TokenId>& history = {1},
                    int32_t num_prompt = 1,
                    TokenId last = -1) {
  if (last < 0) last = static_cast<TokenId>(logits.size()) - 1;
  return sample_token(logits, history, num_prompt, last, params);
}

SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

// Frequencies of many draws, each with its own seed.
std::map<TokenId, int> draw_many(const std::vector<float>& logits,
                                 SamplingParams params,
                                 int draws) {
  std::map<TokenId, int> count;
  for (int i = 0; i < draws; ++i) {
    params.seed = kSeed + static_cast<uint64_t>(i);
    ++count[sample(logits, params).token];
  }
  return count;
}

TEST(SamplerTest, GreedyIsTheArgmaxAndTheLowestIdAmongEquals) {
  EXPECT_EQ(sample({0, 3, 1, 3}, greedy()).token, 1);
}

TEST(SamplerTest, NeverSamplesBeyondTheTokenizersLastId) {
  EXPECT_EQ(sample({0, 1, 9, 9}, greedy(), {1}, 1, 1).token, 1);
  SamplingParams params;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    params.seed = seed;
    EXPECT_LE(sample({0, 1, 9, 9}, params, {1}, 1, 1).token, 1);
  }
}

TEST(SamplerTest, PaddingRowsMayHoldNonsense) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(sample({0, 1, nan}, greedy(), {1}, 1, 1).status.ok());
}

TEST(SamplerTest, NanOrInfiniteLogitsAreAFaultOfTheSequence) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    const SampledToken sampled = sample({0, bad, 1}, greedy());
    EXPECT_EQ(sampled.status.code(), absl::StatusCode::kInternal);
    EXPECT_NE(sampled.status.message().find("token 1"), absl::string_view::npos);
  }
}

TEST(SamplerTest, FrequenciesFollowTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits{0, 1, 2};
  SamplingParams params;
  params.temperature = 2;
  const int draws = 30000;
  const auto count = draw_many(logits, params, draws);
  double total = 0;
  for (const float logit : logits) total += std::exp(logit / 2);
  for (TokenId id = 0; id < 3; ++id) {
    const double expected = std::exp(logits[static_cast<size_t>(id)] / 2) / total;
    // Five standard deviations of a binomial share.
    EXPECT_NEAR(static_cast<double>(count.at(id)) / draws, expected, 5 * std::sqrt(0.25 / draws))
        << "token " << id;
  }
}

TEST(SamplerTest, SameSeedSameTokenAndTheDrawDependsOnTheOutputIndexAlone) {
  const std::vector<float> logits = random_logits(1000, kSeed);
  SamplingParams params;
  params.seed = 7;
  const TokenId first = sample(logits, params, {1, 2, 3}, 3).token;
  EXPECT_EQ(sample(logits, params, {1, 2, 3}, 3).token, first);
  EXPECT_EQ(sample(logits, params, {9}, 1).token, first);  // another prompt, same index
  std::map<TokenId, int> seen;
  for (TokenId i = 0; i < 50; ++i) {
    ++seen[sample(logits, params, std::vector<TokenId>(static_cast<size_t>(i) + 1, 5), 1).token];
  }
  EXPECT_GT(seen.size(), 10U) << "draws of one sequence must differ";
}

TEST(SamplerTest, TopKKeepsTheKMostLikely) {
  const std::vector<float> logits = random_logits(500, kSeed);
  std::vector<TokenId> order(500);
  for (TokenId id = 0; id < 500; ++id) order[static_cast<size_t>(id)] = id;
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  SamplingParams params;
  params.top_k = 3;
  params.temperature = 2;
  for (const auto& [id, times] : draw_many(logits, params, 500)) {
    EXPECT_TRUE(std::find(order.begin(), order.begin() + 3, id) != order.begin() + 3) << id;
  }
}

TEST(SamplerTest, TopPKeepsTheShortestPrefixThatReachesIt) {
  // Probabilities 0.5, 0.3, 0.15, 0.05 in a shuffled order.
  const std::vector<float> logits{std::log(0.15F), std::log(0.5F), std::log(0.05F), std::log(0.3F)};
  SamplingParams params;
  params.top_p = 0.7;
  const auto count = draw_many(logits, params, 4000);
  EXPECT_EQ(count.size(), 2U);
  EXPECT_NEAR(count.at(1) / 4000.0, 0.5 / 0.8, 0.04);
  EXPECT_NEAR(count.at(3) / 4000.0, 0.3 / 0.8, 0.04);
}

TEST(SamplerTest, TopPOverALongTailEqualsAFullSort) {
  const std::vector<float> logits = random_logits(5000, kSeed + 1);
  SamplingParams params;
  params.top_p = 0.9;
  std::vector<TokenId> order(5000);
  for (TokenId id = 0; id < 5000; ++id) order[static_cast<size_t>(id)] = id;
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  double sum = 0;
  size_t kept = 0;
  while (sum < 0.9 * total) sum += std::exp(logits[static_cast<size_t>(order[kept++])]);
  for (const auto& [id, times] : draw_many(logits, params, 2000)) {
    const auto rank = std::find(order.begin(), order.end(), id) - order.begin();
    EXPECT_LT(rank, static_cast<int64_t>(kept)) << "token " << id;
  }
}

TEST(SamplerTest, MinPDropsWhatIsFarLessLikelyThanTheBest) {
  const std::vector<float> logits{0, std::log(0.5F), std::log(0.05F)};
  SamplingParams params;
  params.min_p = 0.1;
  EXPECT_EQ(draw_many(logits, params, 1000).size(), 2U);
}

TEST(SamplerTest, FrequencyAndPresencePenaltiesCountOutputAlone) {
  SamplingParams params = greedy();
  params.frequency_penalty = 1;
  params.presence_penalty = 0.5;
  // Token 0 stands in the prompt twice: no penalty. Token 1 twice in the output: 3 - 2 - 0.5 < 1.
  EXPECT_EQ(sample({2, 3, 1}, params, {0, 0, 1, 1}, 2).token, 0);
}

TEST(SamplerTest, RepetitionPenaltyCountsPromptAndOutput) {
  SamplingParams params = greedy();
  params.repetition_penalty = 2;
  EXPECT_EQ(sample({3, 2, 1}, params, {0}, 1).token, 1);        // 3 / 2 < 2
  EXPECT_EQ(sample({-1, -1.5F, -4}, params, {0}, 1).token, 1);  // -1 * 2 < -1.5
}

TEST(SamplerTest, LogitBiasMovesTheChoice) {
  SamplingParams params = greedy();
  params.logit_bias = {{2, 5.0F}};
  EXPECT_EQ(sample({2, 3, 1}, params).token, 2);
}

TEST(SamplerTest, MinTokensKeepsStopTokensAway) {
  SamplingParams params = greedy();
  params.stop_token_ids = {1};
  params.min_tokens = 2;
  EXPECT_EQ(sample({2, 3, 1}, params, {5}, 1).token, 0);
  EXPECT_EQ(sample({2, 3, 1}, params, {5, 0, 0}, 1).token, 1);  // two output tokens are there
}

TEST(SamplerTest, EverythingMaskedIsAFaultNotAToken) {
  SamplingParams params = greedy();
  params.stop_token_ids = {0, 1};
  params.min_tokens = 5;
  EXPECT_EQ(sample({2, 3}, params).status.code(), absl::StatusCode::kInternal);
}

TEST(SamplerTest, LogprobsAreOfTheRawDistribution) {
  SamplingParams params = greedy();
  params.num_logprobs = 2;
  params.logit_bias = {{2, 100.0F}};
  const std::vector<float> logits{1, 3, 2};
  const double total = std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0));
  const SampledToken sampled = sample(logits, params);
  EXPECT_EQ(sampled.token, 2);
  EXPECT_NEAR(*sampled.logprob, 2 - total, 1e-6);
  ASSERT_EQ(sampled.top.size(), 2U);
  EXPECT_EQ(sampled.top[0].token, 1);
  EXPECT_NEAR(sampled.top[0].logprob, 3 - total, 1e-6);
  EXPECT_EQ(sampled.top[1].token, 2);
}

TEST(SamplerTest, ZeroLogprobsGivesTheChosenOneAlone) {
  SamplingParams params = greedy();
  params.num_logprobs = 0;
  const SampledToken sampled = sample({1, 3}, params);
  EXPECT_TRUE(sampled.top.empty());
  EXPECT_LT(*sampled.logprob, 0);
}

TEST(SamplerTest, UnaskedGivesTheLogprobNearlyAsExactly) {
  for (const size_t size : {1U, 3U, 31U, 64U, 1000U, 129280U}) {
    std::vector<float> logits = random_logits(size, kSeed + size);
    for (float& logit : logits) logit *= 5;
    for (const bool edited : {false, true}) {
      SamplingParams params;
      params.seed = size;
      if (edited) params.logit_bias = {{0, 4.0F}};
      const SampledToken unasked = sample(logits, params);
      params.num_logprobs = 0;
      const SampledToken asked = sample(logits, params);
      EXPECT_EQ(unasked.token, asked.token);
      EXPECT_NEAR(*unasked.logprob, *asked.logprob, 1e-4) << size << " " << edited;
    }
  }
}

TEST(SamplerTest, ATinyTemperatureIsGreedyAndALargeOneStaysFinite) {
  const std::vector<float> logits = random_logits(100, kSeed);
  SamplingParams params;
  params.temperature = 1e-6;
  EXPECT_EQ(sample(logits, params).token, sample(logits, greedy()).token);
  params.temperature = 1e6;
  EXPECT_GE(sample(logits, params).token, 0);
}

}  // namespace
}  // namespace r1d::engine
