// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include "r1d/engine/sampling.h"

namespace r1d::engine {
namespace {

constexpr TokenId kOpen = 10;
constexpr TokenId kClose = 11;

ThinkingLimit limit(int32_t max_tokens, bool starts_open = true) {
  return {.max_tokens = max_tokens,
          .open = kOpen,
          .close = kClose,
          .closing = {7, kClose, 8},
          .starts_open = starts_open};
}

// Everything that follows `output` while the model would always say 1.
std::vector<TokenId> goes_on(std::vector<TokenId> output, const ThinkingLimit& limit, size_t size) {
  while (output.size() < size) output.push_back(forced_token(output, limit).value_or(1));
  return output;
}

TEST(ThinkingLimitTest, ClosesTheThoughtAndThenLetsTheModelSpeak) {
  EXPECT_EQ(goes_on({}, limit(3), 8), (std::vector<TokenId>{1, 1, 1, 7, kClose, 8, 1, 1}));
}

TEST(ThinkingLimitTest, ZeroClosesAtOnce) {
  EXPECT_EQ(goes_on({}, limit(0), 5), (std::vector<TokenId>{7, kClose, 8, 1, 1}));
}

TEST(ThinkingLimitTest, AThoughtThatEndedByItselfIsLeftAlone) {
  const std::vector<TokenId> output = {1, kClose, 5};
  EXPECT_EQ(goes_on(output, limit(3), 7), (std::vector<TokenId>{1, kClose, 5, 1, 1, 1, 1}));
}

TEST(ThinkingLimitTest, CountsFromATagInTheOutput) {
  EXPECT_EQ(goes_on({kOpen}, limit(2, false), 7),
            (std::vector<TokenId>{kOpen, 1, 1, 7, kClose, 8, 1}));
}

TEST(ThinkingLimitTest, WithoutAThoughtNothingIsForced) {
  EXPECT_EQ(goes_on({2}, limit(1, false), 5), (std::vector<TokenId>{2, 1, 1, 1, 1}));
  EXPECT_FALSE(forced_token({}, limit(0, false)).has_value());
}

TEST(ThinkingLimitTest, TheSamplerObeysAtAnyTemperatureAndGivesTheTokensOwnLogprob) {
  for (const double temperature : {0.0, 2.0}) {
    SamplingParams params;
    params.temperature = temperature;
    params.num_logprobs = 0;
    params.thinking_limit = limit(1);
    std::vector<float> logits(16, 0.0F);
    logits[3] = 5;
    const std::vector<TokenId> history = {1, 2, 3};  // two of the prompt
    const SampledToken sampled = sample_token(logits, history, 2, 15, params);
    EXPECT_EQ(sampled.token, 7);
    EXPECT_LT(*sampled.logprob, -4);
  }
}

}  // namespace
}  // namespace r1d::engine
