// SPDX-License-Identifier: Apache-2.0
// Ids and texts as Hugging Face `tokenizers` gives them (the vector files), and what no input may
// do.
#include "r1d/tokenizer/tokenizer.h"

#include <chrono>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/tokenizer/stream_decoder.h"

#include "tests/tokenizer/vectors.h"

namespace r1d::tokenizer {
namespace {

using ::testing::ElementsAre;
using testing::encoded;
using testing::Ids;
using testing::json;
using testing::load;
using testing::tiny;

struct VectorFile {
  const char* name;
  std::string tokenizer;
  std::string vectors;
  bool is_published;  // not in the repository
};

std::vector<VectorFile> vector_files() {
  const std::string data = testing::deepseek_data();
  return {
      {"tiny_deepseek", tiny("deepseek"), tiny("deepseek/vectors.jsonl"), false},
      {"tiny_llama3", tiny("llama3"), tiny("llama3/vectors.jsonl"), false},
      {"r1", data, data + "/vectors/r1_encode.jsonl", true},
      {"distill_qwen", data + "/distill/qwen", data + "/vectors/distill_qwen_encode.jsonl", true},
  };
}

class VectorTest : public ::testing::TestWithParam<VectorFile> {
 protected:
  void SetUp() override {
    if (GetParam().is_published && !std::filesystem::exists(GetParam().vectors)) {
      GTEST_SKIP() << "not here: " << GetParam().vectors << " (set R1D_DEEPSEEK_DATA)";
    }
    tokenizer_ = load(GetParam().tokenizer);
    ASSERT_NE(tokenizer_, nullptr);
    lines_ = testing::read_lines(GetParam().vectors);
    ASSERT_GT(lines_.size(), 100u);
  }
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::vector<json> lines_;
};

TEST_P(VectorTest, EncodesAsTheReference) {
  for (const json& line : lines_) {
    EXPECT_EQ(encoded(*tokenizer_, line["text"].get<std::string>()), line["ids"].get<Ids>())
        << line["text"];
  }
}

TEST_P(VectorTest, DecodesAsTheReference) {
  for (const json& line : lines_) {
    const auto ids = line["ids"].get<Ids>();
    EXPECT_EQ(tokenizer_->decode(ids), line["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer_->decode(ids, /*skip_special=*/true),
              line["decoded_skip_special"].get<std::string>());
  }
}

TEST_P(VectorTest, StreamedTextIsTheWholeText) {
  for (const json& line : lines_) {
    StreamDecoder stream(*tokenizer_);
    std::string text;
    for (const TokenId id : line["ids"].get<Ids>()) text += stream.push(id);
    EXPECT_EQ(text + stream.flush(), line["decoded"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Files,
                         VectorTest,
                         ::testing::ValuesIn(vector_files()),
                         [](const auto& file) { return std::string(file.param.name); });

TEST(TokenizerTest, AControlTextOfSomebodyElseIsOrdinaryTokens) {
  const auto tokenizer = load(tiny("deepseek"));
  const TokenId user = *tokenizer->find_added("<｜User｜>");
  EXPECT_THAT(encoded(*tokenizer, "<｜User｜>"), ElementsAre(user));
  const Ids plain = encoded(*tokenizer, "<｜User｜>", AddedTokens::kPlain);
  EXPECT_GT(plain.size(), 1u);
  for (const TokenId id : plain) EXPECT_FALSE(tokenizer->is_added(id));
  EXPECT_EQ(tokenizer->decode(plain), "<｜User｜>");
}

TEST(TokenizerTest, SegmentsDecideOnlyAboutAddedTokens) {
  const auto tokenizer = load(tiny("deepseek"));
  const auto ids_of = [&](std::vector<Segment> segments) {
    Ids ids;
    EXPECT_TRUE(tokenizer->encode(segments, ids).ok());
    return ids;
  };
  constexpr auto kMatch = AddedTokens::kMatch;
  constexpr auto kPlain = AddedTokens::kPlain;
  // Borders change nothing else: the line end joins the full stop of the other segment.
  EXPECT_EQ(ids_of({{"Be brief.", kPlain}, {"\n\n", kMatch}, {"Answer", kPlain}}),
            encoded(*tokenizer, "Be brief.\n\nAnswer"));
  // In pieces of trusted text a token is one; half of it from somebody else makes none.
  const TokenId think = *tokenizer->find_added("<think>");
  EXPECT_THAT(ids_of({{"<th", kMatch}, {"ink>", kMatch}}), ElementsAre(think));
  for (const TokenId id : ids_of({{"<th", kMatch}, {"ink>", kPlain}})) EXPECT_NE(id, think);
  for (const TokenId id : ids_of({{"<th", kPlain}, {"ink>", kMatch}})) EXPECT_NE(id, think);
  EXPECT_EQ(ids_of({{"<think>", kMatch}, {"<think>", kPlain}, {"<think>", kMatch}}).front(), think);
}

TEST(TokenizerTest, BarsInAsciiAreNoControlToken) {
  const auto tokenizer = load(tiny("deepseek"));
  for (const TokenId id : encoded(*tokenizer, "<|User|>")) EXPECT_FALSE(tokenizer->is_added(id));
}

TEST(TokenizerTest, TheThinkTagsAreNotSpecial) {
  const auto tokenizer = load(tiny("deepseek"));
  for (const char* tag : {"<think>", "</think>", "<｜Assistant｜>"}) {
    const auto id = tokenizer->find_added(tag);
    ASSERT_TRUE(id.has_value()) << tag;
    EXPECT_FALSE(tokenizer->is_special(*id)) << tag;
    EXPECT_EQ(tokenizer->decode(Ids{*id}, /*skip_special=*/true), tag);
  }
}

TEST(TokenizerTest, NamesTheByteThatIsNotUtf8) {
  const auto tokenizer = load(tiny("deepseek"));
  for (const auto& [text, byte] :
       std::vector<std::pair<std::string, std::string>>{{"ab\xFF", "byte 2 is 0xff"},
                                                        {"\xC3", "byte 0 is 0xc3"},
                                                        {"a\xED\xA0\x80", "byte 1 is 0xed"},
                                                        {"\xC0\x80", "byte 0 is 0xc0"},
                                                        {"\xF4\x90\x80\x80", "byte 0 is 0xf4"}}) {
    const absl::Status status = encode(*tokenizer, text, AddedTokens::kMatch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(message_of(status), ::testing::HasSubstr(byte));
  }
}

TEST(TokenizerTest, IdsThatNoTokenHasAreNoText) {
  const auto tokenizer = load(tiny("deepseek"));
  EXPECT_EQ(tokenizer->decode(Ids{tokenizer->last_id() + 1, -1, 1 << 30}), "");
}

std::string megabyte_of(std::string_view part) {
  std::string text;
  while (text.size() < (1 << 20)) text += part;
  return text;
}

// A megabyte of anything takes well under a second optimised; the bound has room for sanitizers and
// a busy machine, and none for work that grows with the square (hours).
void expect_soon(const Tokenizer& tokenizer, const char* part) {
  const std::string text = megabyte_of(part);
  const auto begin = std::chrono::steady_clock::now();
  const Ids ids = encoded(tokenizer, text);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 30) << '"' << part << '"';
  EXPECT_GT(ids.size(), 0u);
}

TEST(TokenizerTest, NoMegabyteTakesLong) {
  for (const char* name : {"deepseek", "llama3"}) {
    const auto tokenizer = load(tiny(name));
    for (const char* part :
         {"a",    "7",      "ab",     " ",      "\n",      " \n",          "\t",
          "!",    "<",      "<｜",    "\u0301", "e\u0301", "\u0316\u0301", "你",
          "カ・", "\u200b", "\u00a0", "'s",     "\x01",    "🦙",         "<think>"}) {
      expect_soon(*tokenizer, part);
    }
  }
}

// The large vocabularies have merges for what the tiny ones leave as bytes; Qwen's is normalized.
TEST(TokenizerTest, NoMegabyteTakesLongWithTheRealVocabularies) {
  for (const char* name : {"", "/distill/qwen"}) {
    const std::string path = testing::deepseek_data() + name;
    if (!std::filesystem::exists(path + "/tokenizer.json")) GTEST_SKIP() << "not here: " << path;
    const auto tokenizer = load(path);
    for (const char* part : {"a", " ", "7", "e\u0301", "\u0316\u0301"}) {
      expect_soon(*tokenizer, part);
    }
  }
}

TEST(TokenizerTest, TheRealTokenizerStreamsAsTheReference) {
  const std::string path = testing::deepseek_data() + "/vectors/r1_stream.jsonl";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "not here: " << path;
  const auto tokenizer = load(testing::deepseek_data());
  for (const json& line : testing::read_lines(path)) {
    StreamDecoder stream(*tokenizer);
    std::vector<std::string> deltas;
    for (const TokenId id : line["ids"].get<Ids>()) deltas.push_back(stream.push(id));
    EXPECT_EQ(deltas, line["deltas"].get<std::vector<std::string>>());
    EXPECT_EQ(stream.flush(), line["flush"].get<std::string>());
  }
}

TEST(StreamDecoderTest, NeverGivesHalfACharacter) {
  const auto tokenizer = load(tiny("deepseek"));
  // One token a byte: the first 256 ordinary ids spell any text in the tiny vocabulary.
  const std::string text = "é你🦙";
  std::vector<TokenId> ids;
  for (const char byte : text) {
    for (TokenId id = 0; id <= tokenizer->last_id(); ++id) {
      if (tokenizer->bytes_of(id) == std::string_view(&byte, 1)) ids.push_back(id);
    }
  }
  ASSERT_EQ(ids.size(), text.size());
  StreamDecoder stream(*tokenizer);
  std::vector<std::string> deltas;
  for (const TokenId id : ids) deltas.push_back(stream.push(id));
  EXPECT_THAT(deltas, ElementsAre("", "é", "", "", "你", "", "", "", "🦙"));

  StreamDecoder cut(*tokenizer);
  EXPECT_EQ(cut.push(ids[2]), "");
  EXPECT_EQ(cut.push(ids[3]), "");
  EXPECT_EQ(cut.flush(), "\uFFFD");
  EXPECT_EQ(cut.flush(), "");
}

}  // namespace
}  // namespace r1d::tokenizer
