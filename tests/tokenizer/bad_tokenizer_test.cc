// SPDX-License-Identifier: Apache-2.0
// What a tokenizer.json may not say: each refusal names the place.
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tokenizer/vectors.h"

namespace r1d::tokenizer {
namespace {

using ::testing::HasSubstr;
using testing::json;

json good() {
  std::ifstream file(testing::tiny("deepseek/tokenizer.json"));
  return json::parse(file);
}

struct Refusal {
  const char* name;
  std::function<void(json&)> spoil;
  const char* message;
};

class RefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesThePlace) {
  json file = good();
  GetParam().spoil(file);
  const auto tokenizer = Tokenizer::parse(file.dump());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(tokenizer.status()), HasSubstr(GetParam().message));
}

json& splits(json& file) {
  return file["pre_tokenizer"]["pretokenizers"];
}

const Refusal kRefusals[] = {
    {"no_object", [](json& f) { f = json::array(); }, "expected an object"},
    {"model_missing", [](json& f) { f.erase("model"); }, "model: expected an object"},
    {"model_type",
     [](json& f) { f["model"]["type"] = "Unigram"; },
     "model.type: \"Unigram\" is not supported"},
    {"unk_token", [](json& f) { f["model"]["unk_token"] = "<unk>"; }, "model.unk_token"},
    {"dropout", [](json& f) { f["model"]["dropout"] = 0.1; }, "model.dropout"},
    {"prefix",
     [](json& f) { f["model"]["continuing_subword_prefix"] = "##"; },
     "model.continuing_subword_prefix"},
    {"suffix",
     [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; },
     "model.end_of_word_suffix"},
    {"byte_fallback", [](json& f) { f["model"]["byte_fallback"] = true; }, "model.byte_fallback"},
    {"vocab_missing",
     [](json& f) { f["model"].erase("vocab"); },
     "model.vocab: expected an object"},
    {"vocab_id_negative",
     [](json& f) { f["model"]["vocab"]["a"] = -1; },
     "model.vocab: the id of \"a\""},
    {"vocab_id_huge",
     [](json& f) { f["model"]["vocab"]["a"] = 1 << 30; },
     "model.vocab: the id of \"a\""},
    {"vocab_id_text",
     [](json& f) { f["model"]["vocab"]["a"] = "1"; },
     "model.vocab: the id of \"a\""},
    {"byte_missing",
     [](json& f) {
       f["model"]["vocab"].erase("a");
       f["model"]["merges"] = json::array();
     },
     "model.vocab has no token for byte 0x61"},
    {"id_twice",
     [](json& f) { f["model"]["vocab"]["a"] = f["model"]["vocab"]["b"]; },
     "belongs to two tokens"},
    {"merges_missing",
     [](json& f) { f["model"].erase("merges"); },
     "model.merges: expected an array"},
    {"merge_without_space",
     [](json& f) { f["model"]["merges"][0] = "ab"; },
     "model.merges[0]: expected"},
    {"merge_of_three",
     [](json& f) {
       f["model"]["merges"][1] = {"a", "b", "c"};
     },
     "model.merges[1]: expected"},
    {"merge_empty", [](json& f) { f["model"]["merges"][0] = " a"; }, "model.merges[0]: expected"},
    {"merge_unknown",
     [](json& f) { f["model"]["merges"][2] = "zzzz q"; },
     "model.merges[2]: \"zzzz\" + \"q\""},
    {"added_no_array", [](json& f) { f["added_tokens"] = 3; }, "added_tokens: expected an array"},
    {"added_no_id", [](json& f) { f["added_tokens"][0].erase("id"); }, "added_tokens[0].id"},
    {"added_empty",
     [](json& f) { f["added_tokens"][1]["content"] = ""; },
     "added_tokens[1].content"},
    {"added_lstrip",
     [](json& f) { f["added_tokens"][2]["lstrip"] = true; },
     "added_tokens[2].lstrip"},
    {"added_rstrip",
     [](json& f) { f["added_tokens"][2]["rstrip"] = true; },
     "added_tokens[2].rstrip"},
    {"added_single_word",
     [](json& f) { f["added_tokens"][2]["single_word"] = true; },
     "added_tokens[2].single_word"},
    {"normalizer",
     [](json& f) {
       f["normalizer"] = {{"type", "Lowercase"}};
     },
     "normalizer: \"Lowercase\" is not supported"},
    {"normalizer_inner",
     [](json& f) {
       f["normalizer"]["normalizers"] = {{{"type", "NFKC"}}};
     },
     "normalizer.normalizers[0]: \"NFKC\" is not supported"},
    {"pre_tokenizer",
     [](json& f) { f["pre_tokenizer"] = nullptr; },
     "pre_tokenizer: null is not supported"},
    {"pre_tokenizer_inner",
     [](json& f) {
       splits(f)[0] = {{"type", "Metaspace"}};
     },
     "pre_tokenizer.pretokenizers[0]: \"Metaspace\" is not supported"},
    {"no_byte_level", [](json& f) { splits(f).erase(3); }, "no ByteLevel"},
    {"after_byte_level",
     [](json& f) { splits(f).push_back(splits(f)[0]); },
     "nothing may follow ByteLevel"},
    {"prefix_space", [](json& f) { splits(f)[3]["add_prefix_space"] = true; }, "add_prefix_space"},
    {"behavior",
     [](json& f) { splits(f)[0]["behavior"] = "Removed"; },
     "pretokenizers[0].behavior: \"Removed\""},
    {"invert", [](json& f) { splits(f)[1]["invert"] = true; }, "pretokenizers[1].invert"},
    {"pattern_string",
     [](json& f) {
       splits(f)[0]["pattern"] = {{"String", "a"}};
     },
     "pretokenizers[0].pattern"},
    {"pattern_broken",
     [](json& f) { splits(f)[0]["pattern"]["Regex"] = "a("; },
     "is no regular expression"},
    {"pattern_class",
     [](json& f) { splits(f)[0]["pattern"]["Regex"] = "[a[b]]"; },
     "a class inside a character class"},
    {"pattern_property",
     [](json& f) { splits(f)[0]["pattern"]["Regex"] = "\\p{Han}"; },
     "\\p{Han} is not supported"},
    {"pattern_word",
     [](json& f) { splits(f)[0]["pattern"]["Regex"] = "\\w+"; },
     "\\w is not supported"},
    {"decoder",
     [](json& f) {
       f["decoder"] = {{"type", "WordPiece"}};
     },
     "decoder: \"WordPiece\" is not supported"},
    {"post_processor",
     [](json& f) {
       f["post_processor"] = {{"type", "BertProcessing"}};
     },
     "post_processor: \"BertProcessing\""},
    {"template_token",
     [](json& f) {
       f["post_processor"] = {
           {"type", "TemplateProcessing"},
           {"single", {{{"SpecialToken", {{"id", "<none>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
     },
     "\"<none>\" is no added token"},
};

INSTANTIATE_TEST_SUITE_P(Files,
                         RefusalTest,
                         ::testing::ValuesIn(kRefusals),
                         [](const auto& refusal) { return std::string(refusal.param.name); });

TEST(BadTokenizerTest, TheFixtureItselfIsGood) {
  EXPECT_TRUE(Tokenizer::parse(good().dump()).ok());
}

TEST(BadTokenizerTest, AHostilePatternEndsWithAnError) {
  json file = good();
  splits(file)[0]["pattern"]["Regex"] = "(a|aa)+$";
  const auto tokenizer = Tokenizer::parse(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  const auto ids = encode(**tokenizer, std::string(200, 'a') + "b", AddedTokens::kPlain);
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(message_of(ids.status()), HasSubstr("gave up at byte"));
}

TEST(BadTokenizerTest, APrefixTokenComesFromTheTemplate) {
  json file = good();
  const std::string bos = file["added_tokens"][0]["content"];
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", bos}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  const auto tokenizer = Tokenizer::parse(file.dump());
  ASSERT_TRUE(tokenizer.ok()) << message_of(tokenizer.status());
  EXPECT_EQ((*tokenizer)->prefix_token(), 0);
}

TEST(BadTokenizerTest, ASpecialTokenInTheVocabularyIsNoWord) {
  std::ifstream stream(testing::tiny("llama3/tokenizer.json"));  // ignore_merges: whole words first
  json file = json::parse(stream);
  const TokenId id = 391;
  file["model"]["vocab"]["zzz"] = id;
  const auto word = Tokenizer::parse(file.dump());
  ASSERT_TRUE(word.ok()) << message_of(word.status());
  EXPECT_EQ(testing::encoded(**word, "zzz", AddedTokens::kPlain), testing::Ids{id});

  file["added_tokens"].push_back({{"id", id}, {"content", "zzz"}, {"special", true}});
  const auto special = Tokenizer::parse(file.dump());
  ASSERT_TRUE(special.ok()) << message_of(special.status());
  EXPECT_EQ(testing::encoded(**special, "zzz", AddedTokens::kMatch), testing::Ids{id});
  for (const TokenId plain : testing::encoded(**special, "zzz", AddedTokens::kPlain)) {
    EXPECT_NE(plain, id);
  }
}

TEST(BadTokenizerTest, AMissingFileIsNamed) {
  const auto tokenizer = Tokenizer::load("/nowhere/tokenizer.json");
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(message_of(tokenizer.status()), HasSubstr("/nowhere/tokenizer.json"));
}

}  // namespace
}  // namespace r1d::tokenizer
