// SPDX-License-Identifier: Apache-2.0
// What tokenizers of this family are commonly got wrong, a test each.
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tokenizer/vectors.h"
#include "tokenizer/splitter.h"

namespace r1d::tokenizer {
namespace {

using ::testing::ElementsAre;
using testing::encoded;
using testing::json;
using testing::load;
using testing::tiny;

// The pieces that the splits of a tokenizer.json cut `text` into.
std::vector<std::string> pieces_of(const std::string& text) {
  std::ifstream file(tiny("deepseek/tokenizer.json"));
  const json root = json::parse(file);
  std::vector<std::string_view> pieces = {text};
  for (const json& entry : root["pre_tokenizer"]["pretokenizers"]) {
    if (entry["type"] != "Split") continue;
    const auto splitter = Splitter::make(entry["pattern"]["Regex"].get<std::string>());
    EXPECT_TRUE(splitter.ok()) << message_of(splitter.status());
    std::vector<std::string_view> finer;
    EXPECT_TRUE(splitter->split(pieces, finer).ok());
    pieces = finer;
  }
  return {pieces.begin(), pieces.end()};
}

TEST(TokenizerTrapTest, SplitsRunOneAfterAnotherAndLookNoFurtherThanTheirPiece) {
  EXPECT_THAT(pieces_of("a 1"), ElementsAre("a", " ", "1"));
  EXPECT_THAT(pieces_of(" 123"), ElementsAre(" ", "123"));
  EXPECT_THAT(pieces_of("a  b"), ElementsAre("a", " ", " b"));
}

TEST(TokenizerTrapTest, DigitsAreGroupedFromTheLeft) {
  EXPECT_THAT(pieces_of("12345"), ElementsAre("123", "45"));
  EXPECT_THAT(pieces_of("1234567"), ElementsAre("123", "456", "7"));
}

TEST(TokenizerTrapTest, TheIdeographRangeEndsAtU9FA5) {
  EXPECT_THAT(pieces_of("你\u9FA5x"), ElementsAre("你\u9FA5", "x"));
  EXPECT_THAT(pieces_of("\u9FA5\u9FA6"), ElementsAre("\u9FA5", "\u9FA6")) << "U+9FA6 is outside";
  EXPECT_THAT(pieces_of("你好world"), ElementsAre("你好", "world"));
}

TEST(TokenizerTrapTest, TheKanaRangeTakesPunctuationThatTheNextSplitCuts) {
  EXPECT_THAT(pieces_of("カ・カ"), ElementsAre("カ", "・", "カ"));
}

TEST(TokenizerTrapTest, LineEndsStayWithThePunctuationBeforeThem) {
  EXPECT_THAT(pieces_of("}\n\n"), ElementsAre("}\n\n"));
  EXPECT_THAT(pieces_of("\n \n x"), ElementsAre("\n \n", " x"));
  EXPECT_THAT(pieces_of(".aé"), ElementsAre(".a", "é"));
  EXPECT_THAT(pieces_of("...abc"), ElementsAre("...", "abc"));
}

TEST(TokenizerTrapTest, UnassignedInUnicode14IsALetterAsInTheReference) {
  // U+31350 came with Unicode 15, after PCRE2 10.42's tables.
  EXPECT_THAT(pieces_of("a\U00031350b"), ElementsAre("a\U00031350b"));
}

TEST(TokenizerTrapTest, TheMongolianVowelSeparatorIsNoWhiteSpace) {
  EXPECT_THAT(pieces_of("!\u180E"), ElementsAre("!", "\u180E"));
  EXPECT_THAT(pieces_of("\u180Ea"), ElementsAre("\u180Ea"));
}

TEST(TokenizerTrapTest, AByteThatIsASpaceInTheFileIsASeparatorAndNothingElse) {
  const auto tokenizer = load(tiny("deepseek"));
  EXPECT_EQ(tokenizer->bytes_of(encoded(*tokenizer, " ").front()), " ");
  EXPECT_EQ(tokenizer->bytes_of(encoded(*tokenizer, "\n").front()), "\n");
}

TEST(TokenizerTrapTest, TokensMayBePartsOfCharacters) {
  const auto tokenizer = load(tiny("deepseek"));
  std::string bytes;
  bool has_part = false;
  for (const TokenId id : encoded(*tokenizer, "🦙")) {
    bytes += tokenizer->bytes_of(id);
    has_part = has_part || tokenizer->bytes_of(id).size() < 4;
  }
  EXPECT_TRUE(has_part);
  EXPECT_EQ(bytes, "🦙");
}

TEST(TokenizerTrapTest, R1KnowsItsOwnExamples) {
  const std::string data = testing::deepseek_data();
  if (!std::filesystem::exists(data + "/tokenizer.json")) GTEST_SKIP() << "not here: " << data;
  const auto tokenizer = load(data);
  EXPECT_THAT(encoded(*tokenizer, "Hello, world!"), ElementsAre(19923, 14, 2058, 3));
  EXPECT_THAT(encoded(*tokenizer, "你好"), ElementsAre(30594));
  EXPECT_THAT(encoded(*tokenizer, "17981919379889192"),
              ElementsAre(9598, 29245, 3885, 31676, 31444, 6152));
  EXPECT_THAT(encoded(*tokenizer, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n"),
              ElementsAre(0, 128803, 23166, 128804, 128798, 201));
  EXPECT_EQ(tokenizer->last_id(), 128814);
  EXPECT_EQ(tokenizer->bytes_of(129000), "") << "a row of the model without a token";
}

}  // namespace
}  // namespace r1d::tokenizer
