// SPDX-License-Identifier: Apache-2.0
#include "engine/device_sampler.h"

#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

constexpr int64_t kVocab = 100;
constexpr TokenId kLast = 89;

struct History {
  std::vector<TokenId> tokens = {7, 8, 7, 20, 21, 20};
  int32_t prompt = 3;

  [[nodiscard]] SequenceStep step(const SamplingParams* params) const {
    SequenceStep step;
    step.tokens = tokens;
    step.num_prompt_tokens = prompt;
    step.sampling = params;
    return step;
  }
};

ops::SampleRequest request_for(const std::vector<SequenceStep>& batch) {
  ops::SampleRequest request;
  fill_sample_request(batch, kLast, kVocab, request);
  return request;
}

TEST(DeviceSamplerTest, PlainGreedyRowsTakeTheShortWay) {
  const History history;
  SamplingParams params;
  params.temperature = 0;
  const auto request = request_for({history.step(&params), history.step(nullptr)});
  EXPECT_EQ(request.rows.size(), 1U);
  EXPECT_TRUE(request.greedy);
  EXPECT_EQ(request.vocab, kLast + 1);
  params.num_logprobs = 0;
  EXPECT_FALSE(request_for({history.step(&params)}).greedy);
}

TEST(DeviceSamplerTest, RepetitionCountsThePromptAndTheOthersTheOutputAlone) {
  const History history;
  SamplingParams params;
  params.frequency_penalty = 0.5;
  auto request = request_for({history.step(&params)});
  ASSERT_EQ(request.counts.size(), 2U);
  EXPECT_EQ(request.counts[0].token, 20);
  EXPECT_EQ(request.counts[0].count, 2);
  params.repetition_penalty = 1.1;
  request = request_for({history.step(&params)});
  ASSERT_EQ(request.counts.size(), 4U);
  EXPECT_EQ(request.counts[0].token, 7);
  EXPECT_EQ(request.counts[0].count, 0);
}

TEST(DeviceSamplerTest, StopTokensAreMaskedUntilMinTokens) {
  const History history;  // three output tokens
  SamplingParams params;
  params.stop_token_ids = {1, 2};
  params.min_tokens = 4;
  EXPECT_EQ(request_for({history.step(&params)}).masked, (std::vector<TokenId>{1, 2}));
  params.min_tokens = 3;
  EXPECT_TRUE(request_for({history.step(&params)}).masked.empty());
}

TEST(DeviceSamplerTest, AThoughtOverItsBudgetForcesItsEnd) {
  const History history;
  SamplingParams params;
  params.thinking_limit = ThinkingLimit{
      .max_tokens = 3, .open = std::nullopt, .close = 50, .closing = {50}, .starts_open = true};
  EXPECT_EQ(request_for({history.step(&params)}).rows.front().forced, 50);
}

TEST(DeviceSamplerTest, ListsOfSeveralRowsStandBehindEachOther) {
  const History history;
  SamplingParams first;
  first.logit_bias = {{3, 1.0F}};
  SamplingParams second;
  second.logit_bias = {{4, 2.0F}, {5, -1.0F}};
  const auto request = request_for({history.step(&first), history.step(&second)});
  EXPECT_EQ(request.rows[1].first_bias, 1);
  EXPECT_EQ(request.rows[1].num_biases, 2);
  EXPECT_EQ(request.biases[2].token, 5);
}

TEST(DeviceSamplerTest, FaultsEndTheirOwnSequence) {
  const History history;
  const SamplingParams params;
  ops::SampleRequest request = request_for({history.step(&params), history.step(&params)});
  request.results = {{.token = -1,
                      .fault = ops::SampleResult::Fault::kNotFinite,
                      .bad_token = 9,
                      .bad_logit = 1e9F,
                      .logprob = 0},
                     {.token = 12,
                      .fault = ops::SampleResult::Fault::kNone,
                      .bad_token = -1,
                      .bad_logit = 0,
                      .logprob = 0}};
  EXPECT_NE(message_of(sampled_token(request, 0).status).find("token 9"), std::string::npos);
  EXPECT_TRUE(sampled_token(request, 1).status.ok());
  EXPECT_EQ(sampled_token(request, 1).token, 12);
}

TEST(DeviceSamplerTest, LogProbabilitiesComeWithTheirTokens) {
  const History history;
  SamplingParams params;
  params.num_logprobs = 2;
  ops::SampleRequest request = request_for({history.step(&params)});
  EXPECT_EQ(request.top_stride, 2);
  request.results = {{.token = 5,
                      .fault = ops::SampleResult::Fault::kNone,
                      .bad_token = -1,
                      .bad_logit = 0,
                      .logprob = -0.5F}};
  request.top_tokens = {5, 6};
  request.top_logprobs = {-0.5F, -1.5F};
  const SampledToken sampled = sampled_token(request, 0);
  EXPECT_FLOAT_EQ(*sampled.logprob, -0.5F);
  ASSERT_EQ(sampled.top.size(), 2U);
  EXPECT_EQ(sampled.top[1].token, 6);
}

}  // namespace
}  // namespace r1d::engine
