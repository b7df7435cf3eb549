// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/tokenizer_ids.h"

#include <cstdlib>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

TEST(MaxTokenIdTest, LooksAtVocabularyAndAddedTokens) {
  EXPECT_EQ(max_token_id(R"({"model": {"vocab": {"a": 0, "b": 7, "c": 3}}})").value(), 7);
  EXPECT_EQ(max_token_id(R"({"added_tokens": [{"id": 9, "content": "x"}, {"id": 8}],
                             "model": {"type": "BPE", "vocab": {"a": 0}}})")
                .value(),
            9);
}

TEST(MaxTokenIdTest, IgnoresNumbersElsewhere) {
  EXPECT_EQ(max_token_id(R"({"id": 99, "vocab": {"x": 99}, "model": {"id": 99, "vocab": {"a": 1},
                             "merges": [["id", 99]], "other": {"vocab": {"x": 99}}},
                             "added_tokens": [{"id": 2, "deeper": {"id": 99}}],
                             "decoder": [{"id": 99}]})")
                .value(),
            2);
}

struct BadTokenizer {
  std::string text;
  const char* message;
};
void PrintTo(const BadTokenizer& bad, std::ostream* out) {
  *out << bad.message;
}

class BadTokenizerTest : public testing::TestWithParam<BadTokenizer> {};

TEST_P(BadTokenizerTest, IsRefused) {
  const auto id = max_token_id(GetParam().text);
  ASSERT_FALSE(id.ok());
  EXPECT_THAT(message_of(id.status()), testing::HasSubstr(GetParam().message));
}

const BadTokenizer kBadTokenizers[] = {
    {"", "not JSON"},
    {"{}", "neither model.vocab nor added_tokens defines a token id"},
    {R"({"model": {"vocab": [["a", -1.5]]}})",
     "neither model.vocab nor added_tokens defines a token id"},
    {R"({"model": {"vocab": {"a": -1}}})",
     "model.vocab: the id of \"a\" is not an integer from 0 to 2147483647"},
    {R"({"model": {"vocab": {"a": 2147483648}}})",
     "model.vocab: the id of \"a\" is not an integer from 0 to 2147483647"},
    {R"({"model": {"vocab": {"a": 18446744073709551615}}})",
     "model.vocab: the id of \"a\" is not an integer"},
    {R"({"model": {"vocab": {"a": "1"}}})", "model.vocab: the id of \"a\" is not an integer"},
    {R"({"added_tokens": [{"id": null}]})", "added_tokens: \"id\" is not an integer"},
    {R"({"model": {"vocab": {"a": 1, "a": 2}}})", "JSON has key \"a\" twice"},
    {std::string(100'000, '['), "JSON is nested deeper than 32 levels"},
};
INSTANTIATE_TEST_SUITE_P(AllTexts, BadTokenizerTest, testing::ValuesIn(kBadTokenizers));

TEST(LastTokenIdTest, IsNoneWithoutATokenizer) {
  const test::TempDir dir;
  const auto id = last_token_id(dir.path());
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_FALSE(id->has_value());
}

TEST(LastTokenIdTest, NamesABrokenFile) {
  const test::TempDir dir;
  dir.write("tokenizer.json", "[]");
  EXPECT_EQ(
      message_of(last_token_id(dir.path()).status()),
      dir.path() + "/tokenizer.json: neither model.vocab nor added_tokens defines a token id");
}

TEST(LastTokenIdTest, IsThe128814OfDeepSeekR1) {
  const char* from_environment = std::getenv("R1D_SHARED_DATA");
  const std::filesystem::path dir =
      from_environment != nullptr
          ? std::filesystem::path(from_environment)
          : std::filesystem::path(test::data("../../../shared/data/deepseek-r1"));
  if (!std::filesystem::exists(dir / "tokenizer.json")) {
    GTEST_SKIP() << "no real tokenizer.json in " << dir << "; set R1D_SHARED_DATA to its folder";
  }
  const auto id = last_token_id(dir.string());
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(*id, 128814);
}

}  // namespace
}  // namespace r1d::checkpoint
