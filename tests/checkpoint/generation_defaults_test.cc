// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"

namespace r1d::checkpoint {
namespace {

absl::StatusOr<GenerationDefaults> load(const std::string& text) {
  const test::TempDir dir;
  dir.write("generation_config.json", text);
  return load_generation_defaults(dir.path());
}

TEST(GenerationDefaultsTest, AreEmptyWithoutTheFile) {
  const test::TempDir dir;
  const auto defaults = load_generation_defaults(dir.path());
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_FALSE(defaults->temperature);
  EXPECT_FALSE(defaults->top_p);
  EXPECT_FALSE(defaults->top_k);
  EXPECT_TRUE(defaults->eos_token_ids.empty());
}

TEST(GenerationDefaultsTest, ReadTheFileOfR1) {
  const auto defaults = load(R"({"_from_model_config": true, "bos_token_id": 0, "eos_token_id": 1,
    "do_sample": true, "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.39.3"})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_FALSE(defaults->top_k);
  EXPECT_EQ(defaults->eos_token_ids, std::vector<TokenId>{1});
}

TEST(GenerationDefaultsTest, AreGreedyWhereTheModelDoesNotSample) {
  const auto defaults = load(R"({"do_sample": false, "temperature": 0.6})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0);
}

TEST(GenerationDefaultsTest, TakeListsNullsAndWholeNumbers) {
  const auto defaults =
      load(R"({"eos_token_id": [1, 2], "temperature": 1, "top_p": null, "top_k": 50})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 1);
  EXPECT_FALSE(defaults->top_p);
  EXPECT_EQ(defaults->top_k, 50);
  EXPECT_EQ(defaults->eos_token_ids, (std::vector<TokenId>{1, 2}));
}

TEST(GenerationDefaultsTest, RefuseValuesOutOfRangeByName) {
  const std::pair<const char*, const char*> kCases[] = {
      {R"({"temperature": -0.1})", "temperature: expected a number from 0 to 100, found -0.1"},
      {R"({"temperature": "hot"})", "temperature: expected a number from 0 to 100, found \"hot\""},
      {R"({"top_p": 0})", "top_p: expected a number from 1e-06 to 1, found 0"},
      {R"({"top_p": 1.5})", "top_p: expected a number from 1e-06 to 1, found 1.5"},
      {R"({"top_k": -1})", "top_k: expected an integer from 0 to 2147483647, found -1"},
      {R"({"top_k": 1.5})", "top_k: expected an integer from 0 to 2147483647, found 1.5"},
      {R"({"eos_token_id": "</s>"})",
       "eos_token_id: expected a token id from 0 to 2147483647 or a list of 1 to 64 of them, found "
       "\"</s>\""},
      {"[1]", "expected an object, found [1]"},
  };
  for (const auto& [text, message] : kCases) {
    const auto defaults = load(text);
    ASSERT_FALSE(defaults.ok()) << text;
    EXPECT_TRUE(
        message_of(defaults.status()).ends_with(std::string("generation_config.json: ") + message))
        << defaults.status();
  }
}

}  // namespace
}  // namespace r1d::checkpoint
