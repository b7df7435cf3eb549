// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/output_parser.h"

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/chat/output_script.h"

namespace r1d::chat {
namespace {

using Kind = OutputEvent::Kind;

constexpr OutputParserOptions kInReasoning{.start_in_reasoning = true};

StopMatcher stops(const std::vector<std::string>& strings, bool include_stop = false) {
  return StopMatcher::create(strings, include_stop).value();
}

OutputParser r1_parser(const OutputParserOptions& options = {}, StopMatcher matcher = {}) {
  return OutputParser(r1_tokens(), options, std::move(matcher));
}

ChatOutput parse(std::string_view text,
                 const OutputParserOptions& options = {},
                 StopMatcher matcher = {}) {
  return run(r1_parser(options, std::move(matcher)), script_of(text, r1_tokens()));
}

ChatOutput answer(std::string reasoning, std::string content) {
  return {.reasoning = std::move(reasoning), .content = std::move(content), .tool_calls = {}};
}

// ---- reasoning and content

TEST(OutputParserTest, ReasoningEndsAtTheClosingTag) {
  EXPECT_EQ(parse("Let me see.\n</think>\n\nFour.", kInReasoning), answer("Let me see.", "Four."));
}

TEST(OutputParserTest, ALeadingThinkTokenOpensReasoning) {
  EXPECT_EQ(parse("<think>\nLet me see.\n</think>\n\nFour."), answer("Let me see.", "Four."));
  EXPECT_EQ(parse(" \n<think>\nhm</think>x"), answer("hm", "x"));
}

TEST(OutputParserTest, WithoutAThinkTokenAllIsContent) {
  EXPECT_EQ(parse("Four."), answer("", "Four."));
  EXPECT_EQ(parse("\n \nFour."), answer("", " \nFour."));
  EXPECT_EQ(parse(" \n"), answer("", " \n"));
}

TEST(OutputParserTest, WhiteSpaceIsHeldUntilTheStartIsDecided) {
  OutputParser parser = r1_parser();
  EXPECT_THAT(parser.push(kTextToken, "  "), testing::IsEmpty());
  EXPECT_EQ(parser.phase(), Phase::kUndecided);
  const auto events = parser.push(kTextToken, "x");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].text, "  x");
  EXPECT_EQ(parser.phase(), Phase::kContent);
}

TEST(OutputParserTest, UnclosedReasoningLeavesNoContent) {
  EXPECT_EQ(parse("I was cut off in the mid", kInReasoning),
            answer("I was cut off in the mid", ""));
}

TEST(OutputParserTest, EmptyThinkingIsLegal) {
  EXPECT_EQ(parse("<think>\n\n</think>\n\nFour."), answer("", "Four."));
  EXPECT_EQ(parse("\n</think>\n\nFour.", kInReasoning), answer("", "Four."));
  EXPECT_EQ(parse("</think>Four.", kInReasoning), answer("", "Four."));
}

TEST(OutputParserTest, AFurtherThinkTokenInReasoningIsDropped) {
  EXPECT_EQ(parse("a<think>b</think>c", kInReasoning), answer("ab", "c"));
}

TEST(OutputParserTest, ThinkTokensInContentAreDropped) {
  EXPECT_EQ(parse("a</think>b<think>c</think>d", kInReasoning), answer("a", "bcd"));
}

TEST(OutputParserTest, ToolTokensInReasoningAreText) {
  EXPECT_EQ(parse("a" + kCalls + "b</think>c", kInReasoning), answer("a" + kCalls + "b", "c"));
}

TEST(OutputParserTest, TagsTypedAsTextAreNotTags) {
  const Script script = {{kTextToken, "say </think>"},
                         {128799, "</think>"},
                         {kTextToken, "<think>" + kCalls + kCall + "x</think>"}};
  EXPECT_EQ(run(r1_parser(kInReasoning), script),
            answer("say </think>", "<think>" + kCalls + kCall + "x</think>"));
}

TEST(OutputParserTest, WhatAControlTokenReleasesBelongsToTheStateBefore) {
  // The detokenizer held half a character and gives it up before the tag.
  OutputParser parser = r1_parser(kInReasoning);
  auto events = parser.push(kTextToken, "a");
  events = parser.push(128799, "\uFFFD</think>");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, Kind::kReasoning);
  EXPECT_EQ(events[0].text, "\uFFFD");
  EXPECT_EQ(parser.phase(), Phase::kContent);
}

TEST(OutputParserTest, TheTailOfTheDetokenizerIsPartOfTheOutput) {
  OutputParser parser = r1_parser();
  EXPECT_EQ(parser.push(kTextToken, "a").at(0).text, "a");
  EXPECT_EQ(parser.finish("\uFFFD").at(0).text, "\uFFFD");
  EXPECT_THAT(parser.finish("x"), testing::IsEmpty());
  EXPECT_THAT(parser.push(kTextToken, "x"), testing::IsEmpty());
}

// ---- newlines

TEST(OutputParserTest, NewlinesAreTrimmedWhereTheModelPutsThem) {
  EXPECT_EQ(parse("\n\na\n\nb\n\n</think>\n\n\nc\n\nd\n\n", kInReasoning),
            answer("\na\n\nb", "c\n\nd\n\n"));
}

TEST(OutputParserTest, NewlinesStayWhenAsked) {
  EXPECT_EQ(parse("\na\n</think>\n\nb\n", {.start_in_reasoning = true, .trim_newlines = false}),
            answer("\na\n", "\n\nb\n"));
}

TEST(OutputParserTest, NewlinesAreHeldUntilAVisibleCharacter) {
  OutputParser parser = r1_parser(kInReasoning);
  EXPECT_EQ(parser.push(kTextToken, "a\n\n").at(0).text, "a");
  EXPECT_THAT(parser.push(kTextToken, "\n"), testing::IsEmpty());
  EXPECT_EQ(parser.push(kTextToken, "b\n").at(0).text, "\n\n\nb");
  EXPECT_THAT(parser.push(128799, "</think>"), testing::IsEmpty());
  EXPECT_THAT(parser.push(kTextToken, "\n\n"), testing::IsEmpty());
  EXPECT_EQ(parser.push(kTextToken, "c\n").at(0).text, "c\n");
}

// ---- counting and phases

TEST(OutputParserTest, CountsTheTokensBetweenTheTags) {
  OutputParser parser = r1_parser();
  const Script script = {{128798, "<think>"},
                         {kTextToken, "\n"},
                         {kTextToken, ""},
                         {kTextToken, "hm"},
                         {128799, "</think>"},
                         {kTextToken, "x"}};
  for (const Token& token : script) (void)parser.push(token.id, token.text);
  EXPECT_EQ(parser.reasoning_tokens(), 3);
}

TEST(OutputParserTest, ShowsThePhase) {
  OutputParser parser = r1_parser();
  EXPECT_EQ(parser.phase(), Phase::kUndecided);
  (void)parser.push(128798, "<think>");
  EXPECT_EQ(parser.phase(), Phase::kReasoning);
  (void)parser.push(128799, "</think>");
  EXPECT_EQ(parser.phase(), Phase::kContent);
  (void)parser.push(128806, kCalls);
  EXPECT_EQ(parser.phase(), Phase::kTools);
}

// ---- options

TEST(OutputParserTest, WithoutTheSplitTheOutputStaysAsItIs) {
  const OutputParserOptions options = {.split_reasoning = false, .parse_tools = false};
  const std::string text = " <think>\n\na\n</think>\n\nb" + kCalls + kCall + "<think>\n";
  EXPECT_EQ(parse(text, options), answer("", text));
  OutputParser parser = r1_parser(options);
  for (const Token& token : script_of(text, r1_tokens())) (void)parser.push(token.id, token.text);
  EXPECT_EQ(parser.reasoning_tokens(), 1);
}

TEST(OutputParserTest, WithoutToolsTheirTagsAreText) {
  const std::string text = kCalls + kCall + "function" + kSep + "f\n" + kEndCall + kEndCalls;
  EXPECT_EQ(parse(text, {.parse_tools = false}), answer("", text));
}

// ---- stop strings

TEST(OutputParserTest, StopStringsApplyToContentAlone) {
  EXPECT_EQ(parse("a STOP b</think>c STOP d", kInReasoning, stops({"STOP"})),
            answer("a STOP b", "c "));
  EXPECT_EQ(parse("a STOP b</think>c STOP d", kInReasoning, stops({"STOP"}, true)),
            answer("a STOP b", "c STOP"));
}

TEST(OutputParserTest, TrimmedNewlinesDoNotStop) {
  EXPECT_EQ(parse("a</think>\n\nb\n\nc", kInReasoning, stops({"\n\n"})), answer("a", "b"));
}

TEST(OutputParserTest, AStopEndsTheOutput) {
  OutputParser parser = r1_parser({}, stops({"x", "."}));
  EXPECT_EQ(parser.push(kTextToken, "One. Two").at(0).text, "One");
  EXPECT_TRUE(parser.stopped());
  EXPECT_EQ(parser.stop_idx(), 1u);
  EXPECT_THAT(parser.push(128806, kCalls), testing::IsEmpty());
  EXPECT_THAT(parser.finish(), testing::IsEmpty());
  EXPECT_EQ(parser.phase(), Phase::kContent);
}

TEST(OutputParserTest, HeldContentGoesOutBeforeAToolCall) {
  OutputParser parser = r1_parser({}, stops({"abc"}));
  EXPECT_THAT(parser.push(kTextToken, "ab"), testing::IsEmpty());
  EXPECT_EQ(parser.push(128806, kCalls).at(0).text, "ab");
}

// ---- tags in text

TEST(OutputParserTest, WithoutIdsTheTagsAreFoundInText) {
  const std::string text = "<think>\na < b <thin\n</think>\n\nSee:" + kCalls + kCall + "function" +
                           kSep + "f\n```json\n{\"a\": \"<\"}\n```" + kEndCall + kEndCalls;
  const ChatOutput expected = {.reasoning = "a < b <thin",
                               .content = "See:",
                               .tool_calls = {{"function", "f", "{\"a\": \"<\"}", false}}};
  EXPECT_EQ(run(OutputParser(ControlTokens{}, {}, {}), {{kTextToken, text}}), expected);
}

TEST(OutputParserTest, HoldsBackOnlyWhatMayBecomeATag) {
  OutputParser parser(ControlTokens{}, kInReasoning, {});
  EXPECT_EQ(parser.push(kTextToken, "a </thi").at(0).text, "a ");
  EXPECT_EQ(parser.push(kTextToken, "s").at(0).text, "</this");
  EXPECT_THAT(parser.push(kTextToken, "</"), testing::IsEmpty());
  EXPECT_THAT(parser.push(kTextToken, "think>"), testing::IsEmpty());
  EXPECT_EQ(parser.phase(), Phase::kContent);
}

TEST(OutputParserTest, ThinkTagsInContentAreTextWhereTheyHaveNoIds) {
  EXPECT_EQ(run(OutputParser(ControlTokens{}, {}, {}), {{kTextToken, "use <think> and </think>"}}),
            answer("", "use <think> and </think>"));
}

TEST(OutputParserTest, AHeldTagPrefixIsTextAtTheEnd) {
  EXPECT_EQ(run(OutputParser(ControlTokens{}, {}, {}), {{kTextToken, "<think"}}),
            answer("", "<think"));
}

TEST(OutputParserTest, ATagWithoutTextOrIdDoesNotExist) {
  ControlTokens tokens;
  tokens.tool_call_begin.text.clear();
  EXPECT_EQ(run(OutputParser(tokens, {}, {}), {{kTextToken, "a" + kCall}}),
            answer("", "a" + kCall));
}

// ---- every split gives the same

struct Scripted {
  const char* name;
  std::string text;
  // Content keeps think tags that have no ids and drops the others.
  bool has_think_tags_in_content = false;
};

std::vector<Scripted> scripted_outputs() {
  const auto call = [](const std::string& name, const std::string& arguments) {
    return kCall + "function" + kSep + name + "\n```json\n" + arguments + "\n```" + kEndCall;
  };
  const std::string weather = call("get_weather", "{\"city\": \"Paris\"}");
  const std::string code = call("run", "{\"code\": \"```py\\n``` \n```\n\"}");
  return {
      {"present", "<think>\n1+1 is easy\n\n</think>\n\nTwo.\n"},
      {"closed", "1+1 is easy\n</think>\n\nTwo. STOP now", true},
      {"absent", " \nTwo, \u4F60\u597D < three"},
      {"unclosed", "<think>\nand so on\n\n"},
      {"empty thinking", "<think>\n\n</think>\n\nTwo."},
      {"only newlines", "\n\n\n"},
      {"nested tags", "<think>a<think>b</think>c</think>d<think>e", true},
      {"tag prefixes", "<th<think><thi</th</think></thin<\uFF5Ctool<\uFF5Ctool\u2581", true},
      {"one call", "<think>hm</think>\n\nLet me look.\n" + kCalls + weather + kEndCalls},
      {"three calls", kCalls + weather + "\n" + code + "\n" + weather + kEndCalls},
      {"calls closed twice", kCalls + weather + kEndCalls + kEndCalls + "done STOP"},
      {"no outer tag", "\n" + weather + " text " + weather},
      {"text after", kCalls + weather + kEndCalls + "\n\nSo it is."},
      {"cut in the arguments", kCalls + kCall + "function" + kSep + "f\n```json\n{\"a\": \"b``"},
      {"cut in the name", "x" + kCalls + kCall + "function" + kSep + "get_w"},
      {"no separator", kCalls + kCall + "function get_weather" + kEndCall + kEndCalls},
      {"no name", kCalls + kCall + "function" + kSep + "\n```json\n{}\n```" + kEndCall + "y"},
      {"not JSON", kCalls + call("f", "{city: Paris}") + call("g", "Paris STOP") + kEndCalls},
      {"no end tags", kCalls + kCall + "function" + kSep + "f\n{\"a\":1}" + weather.substr(0, 99)},
      {"tags in arguments", kCalls + call("f", "{\"x\": \"</think>" + kSep + "\"}") + kEndCalls},
      {"long name", kCalls + kCall + kSep + std::string(1030, 'n') + "\n{}" + kEndCall},
      {"long type", kCalls + kCall + std::string(70, 't') + kSep + "f\n{}" + kEndCall},
      {"stop over a call", "ST" + kCalls + weather + kEndCalls + "OP STO STOP"},
  };
}

class SplitTest : public testing::TestWithParam<std::tuple<ControlTokens, OutputParserOptions>> {};

TEST_P(SplitTest, EverySplitIntoTokensGivesTheWholeResult) {
  const auto& [tokens, options] = GetParam();
  constexpr uint32_t kSeed = 72;
  std::mt19937 random(kSeed);
  const OutputParserOptions& parser_options = options;
  const ControlTokens& control = tokens;
  const auto result = [&](const Script& script) {
    return run(OutputParser(control, parser_options, stops({"STOP", "TOP S"})), script);
  };
  for (const Scripted& scripted : scripted_outputs()) {
    SCOPED_TRACE(testing::Message() << scripted.name << ", seed " << kSeed);
    const Script whole = script_of(scripted.text, tokens);
    const ChatOutput expected = result(whole);
    for (size_t at = 1; at < size_of(whole); ++at) {
      ASSERT_EQ(result(cut_at(whole, at)), expected) << "cut at byte " << at;
    }
    for (int round = 0; round < 50; ++round) {
      const size_t max_bytes = 1 + random() % 12;
      ASSERT_EQ(result(cut_at_random(whole, max_bytes, random)), expected);
    }
  }
}

std::vector<OutputParserOptions> all_options() {
  std::vector<OutputParserOptions> all;
  for (unsigned bits = 0; bits < 16; ++bits) {
    all.push_back({.start_in_reasoning = (bits & 1u) != 0,
                   .split_reasoning = (bits & 2u) != 0,
                   .parse_tools = (bits & 4u) != 0,
                   .trim_newlines = (bits & 8u) != 0});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    TokensAndOptions,
    SplitTest,
    testing::Combine(testing::Values(r1_tokens(), distill_tokens(), ControlTokens{}),
                     testing::ValuesIn(all_options())),
    [](const auto& param) { return "n" + std::to_string(param.index); });

TEST(OutputParserTest, TagsWithAndWithoutIdsGiveTheSame) {
  for (const Scripted& scripted : scripted_outputs()) {
    if (scripted.has_think_tags_in_content) continue;
    const ChatOutput by_id = run(r1_parser(), script_of(scripted.text, r1_tokens()));
    EXPECT_EQ(run(OutputParser(ControlTokens{}, {}, {}), {{kTextToken, scripted.text}}), by_id)
        << scripted.name;
    EXPECT_EQ(
        run(OutputParser(distill_tokens(), {}, {}), script_of(scripted.text, distill_tokens())),
        by_id)
        << scripted.name;
  }
}

// ---- time

TEST(OutputParserTest, TakesLinearTimeForWhatIsHeldBack) {
  // A byte a token; each text keeps something held back for long, or looks like a tag all the time.
  constexpr size_t kBytes = 1 << 18;
  const std::string arguments = kCall + "function" + kSep + "f\n{";
  for (const std::string& start : {std::string(), std::string("<think>"), arguments}) {
    for (const std::string_view unit : {"\n", "<", "`", "\n``` ", "</think", "\uFF5C<\uFF5Ctool"}) {
      OutputParser parser(ControlTokens{}, {}, stops({"<<<<b", "\n\n\nb"}));
      (void)parser.push(kTextToken, start);
      for (size_t i = 0; i < kBytes; ++i) {
        (void)parser.push(kTextToken, unit.substr(i % unit.size(), 1));
      }
      (void)parser.finish();
      EXPECT_FALSE(parser.stopped());
    }
  }
}

}  // namespace
}  // namespace r1d::chat
