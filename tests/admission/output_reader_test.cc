// SPDX-License-Identifier: Apache-2.0
// Output of a sequence as a client gets it, with the tiny DeepSeek tokenizer.
#include "r1d/admission/output_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/support/test_data.h"

namespace r1d::admission {
namespace {

using scheduler::FinishEvent;
using scheduler::FinishReason;
using tokenizer::AddedTokens;

std::shared_ptr<const TextModel> small_text() {
  auto text = TextModel::load({.model_dir = test::data("tokenizers/deepseek"),
                               .tokenizer = "",
                               .chat_template = test::data("templates/deepseek-r1.jinja"),
                               .match_control_tokens = false});
  EXPECT_TRUE(text.ok()) << text.status();
  return *std::move(text);
}

class OutputReaderTest : public ::testing::Test {
 protected:
  std::vector<engine::SampledToken> tokens(std::string_view text) const {
    const auto ids = tokenizer::encode(text_->tokenizer(), text, AddedTokens::kMatch);
    EXPECT_TRUE(ids.ok()) << ids.status();
    std::vector<engine::SampledToken> sampled(ids->size());
    for (size_t i = 0; i < ids->size(); ++i) sampled[i].token = (*ids)[i];
    return sampled;
  }

  static OutputOptions stops(std::vector<std::string> texts, bool include = false) {
    auto matcher = chat::StopMatcher::create(texts, include);
    EXPECT_TRUE(matcher.ok()) << matcher.status();
    return {.stops = *std::move(matcher), .stop_texts = std::move(texts), .parser = std::nullopt};
  }

  static FinishEvent end(FinishReason reason, int32_t num_tokens) {
    FinishEvent event;
    event.reason = reason;
    event.num_output_tokens = num_tokens;
    return event;
  }

  // The text of `all`, read one token at a time.
  std::string read_all(OutputReader& reader, const std::vector<engine::SampledToken>& all) const {
    std::string text;
    for (const engine::SampledToken& token : all) {
      text += reader.read(0, {token}, std::nullopt).text;
    }
    const auto size = static_cast<int32_t>(all.size());
    return text + reader.read(0, {}, end(FinishReason::kLength, size)).text;
  }

  const std::shared_ptr<const TextModel> text_ = small_text();
};

TEST_F(OutputReaderTest, GivesTextOfWholeCharacters) {
  OutputReader reader(text_, {}, 1);
  EXPECT_EQ(read_all(reader, tokens("é 你好 🦙 end")), "é 你好 🦙 end");
}

TEST_F(OutputReaderTest, AnUnfinishedCharacterEndsAsAReplacement) {
  OutputReader reader(text_, {}, 1);
  auto cut = tokens("🦙");
  ASSERT_GT(cut.size(), 1U);
  cut.pop_back();
  EXPECT_EQ(read_all(reader, cut), "\uFFFD");
}

TEST_F(OutputReaderTest, AStopTextEndsItsSequenceForGood) {
  OutputReader reader(text_, stops({"cd", "STOP"}), 2);
  EXPECT_TRUE(reader.may_stop());
  const ReadOutput first = reader.read(1, tokens("abST"), std::nullopt);
  EXPECT_EQ(first.text, "ab");
  EXPECT_FALSE(first.stopped);
  const ReadOutput second = reader.read(1, tokens("OP and more"), std::nullopt);
  EXPECT_EQ(second.text, "");
  EXPECT_TRUE(second.stopped);
  EXPECT_LT(second.tokens.size(), tokens("OP and more").size());
  const size_t num_kept = first.tokens.size() + second.tokens.size();

  const ReadOutput late = reader.read(1, tokens("late"), std::nullopt);
  EXPECT_TRUE(late.tokens.empty());
  EXPECT_FALSE(late.stopped) << "said once";
  FinishEvent cancelled_event = end(FinishReason::kCancelled, 99);
  cancelled_event.status = cancelled("whatever");
  const ReadOutput last = reader.read(1, {}, cancelled_event);
  ASSERT_TRUE(last.finish.has_value());
  EXPECT_EQ(last.finish->reason, FinishReason::kStop);
  EXPECT_TRUE(last.finish->status.ok());
  EXPECT_EQ(last.finish->num_output_tokens, static_cast<int32_t>(num_kept));
  EXPECT_EQ(last.stop_text, "STOP");

  EXPECT_EQ(reader.read(0, tokens("other"), std::nullopt).text, "other") << "sequence 0 goes on";
}

TEST_F(OutputReaderTest, TextThatOnlyBeganLikeAStopComesOutAtTheEnd) {
  OutputReader reader(text_, stops({"STOP"}), 1);
  EXPECT_EQ(read_all(reader, tokens("abSTO")), "abSTO");
}

TEST_F(OutputReaderTest, AChatComesInItsParts) {
  OutputOptions options;
  options.parser = chat::OutputParserOptions{.start_in_reasoning = true};
  OutputReader reader(text_, std::move(options), 1);
  const auto all = tokens("two\n</think>\n\nfour");
  ReadOutput output =
      reader.read(0, all, end(FinishReason::kStop, static_cast<int32_t>(all.size())));
  chat::ChatOutput whole;
  for (const chat::OutputEvent& event : output.events) whole.add(event);
  EXPECT_EQ(whole.reasoning, "two");
  EXPECT_EQ(whole.content, "four");
  EXPECT_GT(output.num_reasoning_tokens, 0);
  EXPECT_EQ(output.text, "");
}

TEST_F(OutputReaderTest, WithoutATokenizerTokensPassAsTheyAre) {
  OutputReader reader(nullptr, {}, 1);
  std::vector<engine::SampledToken> some(3);
  const ReadOutput output = reader.read(0, some, end(FinishReason::kLength, 3));
  EXPECT_EQ(output.tokens.size(), 3U);
  EXPECT_EQ(output.text, "");
  EXPECT_EQ(output.finish->num_output_tokens, 3);
}

TEST(TextModelTest, AFolderWithoutATokenizerIsNone) {
  const auto text = TextModel::load({.model_dir = test::data(""),
                                     .tokenizer = "",
                                     .chat_template = "",
                                     .match_control_tokens = false});
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, nullptr);
}

TEST(TextModelTest, ATokenizerThatWasNamedMustBeThere) {
  const auto text = TextModel::load({.model_dir = "",
                                     .tokenizer = test::data(""),
                                     .chat_template = "",
                                     .match_control_tokens = false});
  EXPECT_EQ(text.status().code(), absl::StatusCode::kNotFound);
}

TEST(TextModelTest, KnowsWhetherAPromptEndsInAThought) {
  const auto text = small_text();
  for (const auto& [prompt, inside] :
       std::vector<std::pair<std::string, bool>>{{"a<think>", true},
                                                 {"a<think>\n", true},
                                                 {"a<think>\n\n", false},
                                                 {"<think>a", false},
                                                 {"a", false},
                                                 {"", false}}) {
    const auto encoded = text->encode(prompt, /*plain=*/false);
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    EXPECT_EQ(encoded->in_reasoning, inside) << prompt;
  }
}

}  // namespace
}  // namespace r1d::admission
