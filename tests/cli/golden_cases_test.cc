// SPDX-License-Identifier: Apache-2.0
#include "cli/golden_cases.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::cli {
namespace {

GoldenCase two_tokens() {
  return {.prompt = {1},
          .greedy = {4, 7},
          .gap = {0.5, 0.001},
          .logit_std = 1,
          .last_logits = {1, 2, 2}};
}

TEST(GoldenVerdictTest, PassesWhenLogitsAndTokensMatch) {
  const GoldenVerdict verdict = judge(two_tokens(), {4, 7}, {1, 2, 2}, 1e-3);
  EXPECT_TRUE(verdict.passed);
  EXPECT_EQ(verdict.matching_tokens, 2);
  EXPECT_EQ(verdict.logits_error, 0);
}

TEST(GoldenVerdictTest, ADifferentTokenWhereTheGapIsLargeFails) {
  const GoldenVerdict verdict = judge(two_tokens(), {5, 7}, {1, 2, 2}, 1e-3);
  EXPECT_FALSE(verdict.passed);
  EXPECT_EQ(verdict.matching_tokens, 0);
}

TEST(GoldenVerdictTest, ADifferentTokenWhereTheGapIsBelowTheErrorIsExcused) {
  const GoldenVerdict verdict = judge(two_tokens(), {4, 9}, {1, 2, 2}, 1e-3);
  EXPECT_TRUE(verdict.passed);
  EXPECT_TRUE(verdict.excused);
}

TEST(GoldenVerdictTest, TooFewTokensFail) {
  EXPECT_FALSE(judge(two_tokens(), {4}, {1, 2, 2}, 1e-3).passed);
}

TEST(GoldenVerdictTest, LogitsOutsideTheToleranceFailWhateverTheTokens) {
  EXPECT_FALSE(judge(two_tokens(), {4, 7}, {1, 2, 2.1F}, 1e-3).passed);
  EXPECT_FALSE(judge(two_tokens(), {4, 7}, {1, 2, NAN}, 1e-3).passed);
  EXPECT_FALSE(judge(two_tokens(), {4, 7}, {}, 1e-3).passed);
}

class GoldenFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/golden_files";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    std::filesystem::copy(R1D_TEST_DATA "/golden/v3-noqlora-bf16/golden.safetensors", dir_);
  }
  std::string error_of(const std::string& json) {
    std::ofstream(dir_ + "/golden.json") << json;
    const auto cases = load_golden_cases(dir_, 512);
    return cases.ok() ? "" : message_of(cases.status());
  }
  std::string dir_;
};

TEST_F(GoldenFilesTest, ReadsTheCasesOfACheckpoint) {
  const auto cases = load_golden_cases(R1D_TEST_DATA "/golden/v3-noqlora-bf16", 512);
  ASSERT_TRUE(cases.ok()) << message_of(cases.status());
  ASSERT_EQ(cases->size(), 4U);
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

TEST_F(GoldenFilesTest, LogitsOfAnotherVocabularyAreRefused) {
  std::ofstream(dir_ + "/golden.json")
      << R"({"cases": [{"prompt": [1], "greedy": [1], "gap": [1], "logit_std": 1}]})";
  EXPECT_NE(
      message_of(load_golden_cases(dir_, 100).status()).find("512 values, expected vocab_size 100"),
      std::string::npos);
}

}  // namespace
}  // namespace r1d::cli
