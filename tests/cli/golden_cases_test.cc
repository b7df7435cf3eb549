// SPDX-License-Identifier: Apache-2.0
#include "cli/golden_cases.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/support/test_data.h"

namespace r1d::cli {
namespace {

GoldenCase two_tokens() {
  GoldenCase result;
  result.prompt = {1};
  result.greedy = {4, 7};
  result.gap = {0.5, 0.001};
  result.logit_std = 1;
  result.last_logits = {1, 2, 2};
  return result;
}

TEST(GoldenVerdictTest, PassesWhenLogitsAndTokensMatch) {
  const GoldenVerdict verdict = judge(two_tokens(), {4, 7}, {1, 2, 2}, 1e-3);
  EXPECT_EQ(verdict.outcome, GoldenOutcome::kPassed);
  EXPECT_EQ(verdict.matching_tokens, 2);
  EXPECT_EQ(verdict.logits_error, 0);
}

TEST(GoldenVerdictTest, ADifferentTokenWhereTheGapIsLargeFails) {
  const GoldenVerdict verdict = judge(two_tokens(), {5, 7}, {1, 2, 2}, 1e-3);
  EXPECT_EQ(verdict.outcome, GoldenOutcome::kFailed);
  EXPECT_EQ(verdict.matching_tokens, 0);
}

TEST(GoldenVerdictTest, ADifferentTokenWhereTheGapIsBelowTheErrorIsExcused) {
  const GoldenVerdict verdict = judge(two_tokens(), {4, 9}, {1, 2, 2}, 1e-3);
  EXPECT_EQ(verdict.outcome, GoldenOutcome::kPassed);
  EXPECT_TRUE(verdict.excused);
}

TEST(GoldenVerdictTest, TooFewTokensFail) {
  EXPECT_EQ(judge(two_tokens(), {4}, {1, 2, 2}, 1e-3).outcome, GoldenOutcome::kFailed);
}

TEST(GoldenVerdictTest, LogitsOutsideTheToleranceFailWhateverTheTokens) {
  EXPECT_EQ(judge(two_tokens(), {4, 7}, {1, 2, 2.1F}, 1e-3).outcome, GoldenOutcome::kFailed);
  EXPECT_EQ(judge(two_tokens(), {4, 7}, {1, 2, NAN}, 1e-3).outcome, GoldenOutcome::kFailed);
  EXPECT_EQ(judge(two_tokens(), {4, 7}, {}, 1e-3).outcome, GoldenOutcome::kFailed);
}

// Cases with what the reference says of the router, compared at a tolerance that decides 0.16.
GoldenCase with_margins(double prompt, std::vector<double> steps) {
  GoldenCase result = two_tokens();
  result.gap = {5, 5};
  result.prompt_router_margin = prompt;
  result.router_margin = std::move(steps);
  return result;
}

TEST(GoldenVerdictTest, OtherLogitsAtANearTieOfTheRouterAreNotJudged) {
  const std::vector<float> other{1, 2, 3};
  const auto outcome = [&](const GoldenCase& expected, double tolerance) {
    return judge(expected, {4, 7}, other, tolerance).outcome;
  };
  EXPECT_EQ(outcome(with_margins(0.15, {1, 1}), 0.02), GoldenOutcome::kNearTie);
  EXPECT_EQ(outcome(with_margins(0.17, {1, 1}), 0.02), GoldenOutcome::kFailed);
  EXPECT_EQ(outcome(with_margins(0.0001, {1, 1}), 1e-3), GoldenOutcome::kFailed) << "f32 decides";
  EXPECT_EQ(outcome(two_tokens(), 0.02), GoldenOutcome::kFailed) << "nothing recorded";
}

TEST(GoldenVerdictTest, ANearTieThatAgreesPassesAndBrokenAnswersFail) {
  const GoldenCase expected = with_margins(0.01, {1, 1});
  EXPECT_EQ(judge(expected, {4, 7}, {1, 2, 2}, 0.02).outcome, GoldenOutcome::kPassed);
  EXPECT_EQ(judge(expected, {4, 7}, {1, 2, NAN}, 0.02).outcome, GoldenOutcome::kFailed);
  EXPECT_EQ(judge(expected, {4}, {1, 2, 3}, 0.02).outcome, GoldenOutcome::kFailed);
}

TEST(GoldenVerdictTest, ATokenMayDifferBehindANearTieOfTheRouterAlone) {
  const auto outcome = [](std::vector<double> margins) {
    return judge(with_margins(1, std::move(margins)), {4, 9}, {1, 2, 2}, 0.02).outcome;
  };
  EXPECT_EQ(outcome({1, 1}), GoldenOutcome::kFailed);
  EXPECT_EQ(outcome({0.1, 1}), GoldenOutcome::kPassed);
  EXPECT_EQ(outcome({1, 0.1}), GoldenOutcome::kPassed);
}

// Logits that are off by 0.1 of 3: 3.3 %.
TEST(GoldenVerdictTest, KernelsThatRoundAreJudgedByWhatRoundingChanges) {
  const std::vector<float> other{1, 2, 2.1F};
  const auto verdict = [&](double margin, double e4m3_error, double tolerance) {
    GoldenCase expected = with_margins(margin, {1, 1});
    expected.e4m3_error = e4m3_error;
    return judge(expected, {4, 7}, other, tolerance);
  };
  EXPECT_EQ(verdict(1, 0.025, 0.02).outcome, GoldenOutcome::kPassed);
  EXPECT_EQ(verdict(1, 0.022, 0.06).outcome, GoldenOutcome::kFailed);
  EXPECT_NEAR(verdict(1, 0.025, 0.02).allowed_error, 0.0354, 1e-4);
  EXPECT_EQ(verdict(0.15, 0.4, 0.02).outcome, GoldenOutcome::kNearTie)
      << "other experts, not noise";
  EXPECT_EQ(verdict(0.15, 0.4, 0.04).outcome, GoldenOutcome::kPassed);
}

class GoldenFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/golden_files";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    std::filesystem::copy(test::data("golden/v3-noqlora-bf16/golden.safetensors"), dir_);
  }
  std::string error_of(const std::string& json) {
    std::ofstream(dir_ + "/golden.json") << json;
    const auto cases = load_golden_cases(dir_, 512);
    return cases.ok() ? "" : message_of(cases.status());
  }
  std::string dir_;
};

TEST_F(GoldenFilesTest, ReadsTheCasesOfACheckpoint) {
  const auto cases = load_golden_cases(test::data("golden/v3-noqlora-bf16"), 512);
  ASSERT_TRUE(cases.ok()) << message_of(cases.status());
  ASSERT_EQ(cases->size(), 9U);
  EXPECT_EQ((*cases)[3].prompt.size(), 200U);
  EXPECT_EQ((*cases)[3].last_logits.size(), 512U);
}

TEST_F(GoldenFilesTest, BadFilesAreRefusedByNameAndCase) {
  EXPECT_NE(message_of(load_golden_cases(dir_, 512).status()).find("golden.json: cannot be opened"),
            std::string::npos);
  EXPECT_NE(error_of("{").find("golden.json: case 0"), std::string::npos);
  EXPECT_NE(error_of(R"({"cases": []})").find("no cases"), std::string::npos);
  EXPECT_NE(error_of(R"({"cases": [{"prompt": "x"}]})").find("case 0"), std::string::npos);
  EXPECT_NE(error_of(R"({"cases": [{"prompt": [1], "greedy": [1], "gap": [], "logit_std": 1}]})")
                .find("one value a greedy"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"cases": [{"prompt": [900], "greedy": [1], "gap": [1], "logit_std": 1}]})")
                .find("outside the vocabulary"),
            std::string::npos);
}

TEST_F(GoldenFilesTest, WhatTheReferenceSaysOfTheRouterIsRead) {
  const std::string plain = R"({"prompt": [1], "greedy": [1], "gap": [1], "logit_std": 1)";
  std::ofstream(dir_ + "/golden.json")
      << R"({"cases": [)" << plain << "}," << plain
      << R"(, "activations": "e4m3", "e4m3_error": 0.1, "router_margin": [0.5], )"
      << R"("prompt_router_margin": 0.25}]})";
  const auto cases = load_golden_cases(dir_, 512);
  ASSERT_TRUE(cases.ok()) << message_of(cases.status());
  EXPECT_FALSE((*cases)[0].e4m3 || (*cases)[0].e4m3_error || (*cases)[0].prompt_router_margin);
  EXPECT_TRUE((*cases)[1].e4m3);
  EXPECT_EQ((*cases)[1].e4m3_error, 0.1);
  EXPECT_EQ((*cases)[1].number, 1U);
  EXPECT_EQ((*cases)[1].prompt_router_margin, 0.25);
  EXPECT_EQ((*cases)[1].router_margin, std::vector<double>{0.5});
  EXPECT_NE(
      error_of(R"({"cases": [)" + plain + R"(, "router_margin": [], "prompt_router_margin": 1}]})")
          .find("router_margin needs one value"),
      std::string::npos);
}

TEST_F(GoldenFilesTest, LogitsOfAnotherVocabularyAreRefused) {
  std::ofstream(dir_ + "/golden.json")
      << R"({"cases": [{"prompt": [1], "greedy": [1], "gap": [1], "logit_std": 1}]})";
  EXPECT_NE(
      message_of(load_golden_cases(dir_, 100).status()).find("512 values, expected vocab_size 100"),
      std::string::npos);
}

}  // namespace
}  // namespace r1d::cli
