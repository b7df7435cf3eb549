// SPDX-License-Identifier: Apache-2.0
// Tool calls through OutputParser, as R1 writes them and as it should not.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/chat/output_parser.h"

#include "chat/json_check.h"
#include "tests/chat/output_script.h"

namespace r1d::chat {
namespace {

using Kind = OutputEvent::Kind;
using testing::IsEmpty;

OutputParser parser(StopMatcher matcher = {}) {
  return OutputParser(r1_tokens(), {}, std::move(matcher));
}

ChatOutput parse_calls(std::string_view text, StopMatcher matcher = {}) {
  return run(parser(std::move(matcher)), script_of(text, r1_tokens()));
}

std::string call(const std::string& name, const std::string& arguments) {
  return kCall + "function" + kSep + name + "\n```json\n" + arguments + "\n```" + kEndCall;
}

// A call with `inside` between its tags, parsed.
ChatOutput parse_call(const std::string& inside) {
  return parse_calls(kCalls + kCall + inside + kEndCall + kEndCalls);
}

ChatOutput calls(std::vector<ToolCall> tool_calls) {
  return {.reasoning = {}, .content = {}, .tool_calls = std::move(tool_calls)};
}

ChatOutput content(std::string text) {
  return {.reasoning = {}, .content = std::move(text), .tool_calls = {}};
}

TEST(ToolCallTest, ReadsACall) {
  EXPECT_EQ(parse_calls(kCalls + call("get_weather", "{\"city\": \"Paris\"}") + kEndCalls),
            calls({{"function", "get_weather", "{\"city\": \"Paris\"}"}}));
}

TEST(ToolCallTest, ReadsSeveralCallsAndDropsTheNewlineBetween) {
  EXPECT_EQ(parse_calls(kCalls + call("a", "{}") + "\n" + call("b", "{\"x\": [1]}") + kEndCalls),
            calls({{"function", "a", "{}"}, {"function", "b", "{\"x\": [1]}"}}));
}

TEST(ToolCallTest, StreamsTheNameOnceAndThenTheArguments) {
  OutputParser stream = parser();
  EXPECT_THAT(stream.push(128806, kCalls), IsEmpty());
  EXPECT_THAT(stream.push(128808, kCall), IsEmpty());
  EXPECT_THAT(stream.push(kTextToken, "function"), IsEmpty());
  EXPECT_THAT(stream.push(128814, kSep), IsEmpty());
  EXPECT_THAT(stream.push(kTextToken, "f\n```json\n"), IsEmpty());
  auto events = stream.push(kTextToken, "{\"a\"");
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, Kind::kToolCallBegin);
  EXPECT_EQ(events[0].type, "function");
  EXPECT_EQ(events[0].name, "f");
  EXPECT_EQ(events[1].kind, Kind::kToolCallArguments);
  EXPECT_EQ(events[1].text, "{\"a\"");
  EXPECT_EQ(stream.push(kTextToken, ": 1}").at(0).text, ": 1}");
  EXPECT_THAT(stream.push(kTextToken, "\n``"), IsEmpty());
  EXPECT_THAT(stream.push(kTextToken, "`"), IsEmpty());
  events = stream.push(128809, kEndCall);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, Kind::kToolCallEnd);
  EXPECT_FALSE(events[0].malformed);
  EXPECT_EQ(stream.num_tool_calls(), 1);
}

TEST(ToolCallTest, CountsTheCallsInItsEvents) {
  OutputParser stream = parser();
  std::vector<int32_t> indices;
  for (const Token& token : script_of(call("a", "{}") + call("b", "{}"), r1_tokens())) {
    for (const OutputEvent& event : stream.push(token.id, token.text)) {
      indices.push_back(event.call_idx);
    }
  }
  EXPECT_THAT(indices, testing::ElementsAre(0, 0, 0, 1, 1, 1));
}

TEST(ToolCallTest, FencesInsideStringsDoNotEndTheArguments) {
  const std::string arguments = "{\"md\": \"a\n```\nb\n``` c ````\"}";
  OutputParser stream = parser();
  ChatOutput output;
  for (const Token& token : script_of(call("f", arguments), r1_tokens())) {
    for (const OutputEvent& event : stream.push(token.id, token.text)) output.add(event);
  }
  ASSERT_EQ(output.tool_calls.size(), 1u);
  EXPECT_EQ(output.tool_calls[0].arguments, arguments);
  EXPECT_EQ(parse_calls(call("f", "{\"md\": \"\\n```\"}")).tool_calls.at(0).arguments,
            "{\"md\": \"\\n```\"}");
}

TEST(ToolCallTest, ContentBeforeAndAfterCallsStays) {
  const ChatOutput output =
      parse_calls("I look.\n" + kCalls + call("f", "{}") + "\n" + kEndCalls + "\n\nDone.\n");
  EXPECT_EQ(output.content, "I look.\nDone.\n");
  EXPECT_EQ(output.tool_calls.size(), 1u);
}

TEST(ToolCallTest, CallsNeedNoOuterTagsAndMayCloseThemTwice) {
  EXPECT_EQ(parse_calls("\n" + call("f", "{}")), calls({{"function", "f", "{}"}}));
  EXPECT_EQ(parse_calls(kCalls + call("f", "{}") + kEndCalls + kEndCalls),
            calls({{"function", "f", "{}"}}));
}

TEST(ToolCallTest, AcceptsWhatModelsVaryAroundTheFences) {
  const ChatOutput expected = calls({{"function", "f", "{\"a\": 1}"}});
  for (const std::string& inside : {
           "function" + kSep + "f\n```json\n{\"a\": 1}```",
           "function" + kSep + "f\n```json\n{\"a\": 1}\n",
           "function" + kSep + "f\n```\n{\"a\": 1}\n```",
           "function" + kSep + "f\n{\"a\": 1}",
           "function" + kSep + "f\n{\"a\": 1}\n```",
           "function" + kSep + "f{\"a\": 1}",
           "function" + kSep + "f```json{\"a\": 1}\n```",
           "function" + kSep + "f \r\n```JSON \r\n{\"a\": 1}\r\n```\r\n",
           "\nfunction " + kSep + " f \n\n```json\n\n {\"a\": 1}\n\n```\n",
           "function" + kSep + "f\n```json\n{\"a\": 1}\n``",
           kSep + "f\n```json\n{\"a\": 1}\n```",
       }) {
    EXPECT_EQ(parse_call(inside), expected) << inside;
  }
}

TEST(ToolCallTest, ACallWithoutAUsableHeaderIsContentAsItStands) {
  for (const std::string& inside : {
           std::string(""),
           std::string("function get_weather\n```json\n{}\n```"),
           "function" + kSep,
           "function" + kSep + "\n```json\n{}\n```",
           "function" + kSep + "f",
           "function" + kSep + "f\n```json\n\n```",
           "function" + kSep + "f\n```json\nParis\n```",
           "function" + kSep + "f\n```json\n[1]\n```",
           "function" + kSep + "f\n``{}\n```",
           "function" + kSep + "get weather\n{}",
           "a b" + kSep + "f\n{}",
           "function" + kSep + "f\n" + kSep + "{}",
           "function" + kSep + std::string(5000, 'n') + "\n{}",
           std::string(5000, 't') + kSep + "f\n{}",
       }) {
    EXPECT_EQ(parse_call(inside), content(kCall + inside + kEndCall)) << inside;
  }
}

TEST(ToolCallTest, OtherCallsSurviveAMalformedOne) {
  const std::string broken = kCall + "function" + kSep + "b\n```json\nno\n```" + kEndCall;
  EXPECT_EQ(
      parse_calls(kCalls + call("a", "{}") + "\n" + broken + "\n" + call("c", "{}") + kEndCalls),
      (ChatOutput{.reasoning = {},
                  .content = broken,
                  .tool_calls = {{"function", "a", "{}"}, {"function", "c", "{}"}}}));
}

TEST(ToolCallTest, ArgumentsThatAreNotJsonAreMarked) {
  EXPECT_EQ(parse_call("function" + kSep + "f\n```json\n{city: Paris}\n```"),
            calls({{"function", "f", "{city: Paris}", true}}));
  EXPECT_EQ(parse_call("function" + kSep + "f\n```json\n{} and more\n```"),
            calls({{"function", "f", "{} and more", true}}));
}

TEST(ToolCallTest, ACallThatTheOutputCutsOffIsMarked) {
  const std::string begin = kCalls + kCall + "function" + kSep + "f\n```json\n";
  EXPECT_EQ(parse_calls(begin + "{\"a\": \"Par"),
            calls({{"function", "f", "{\"a\": \"Par", true}}));
  EXPECT_EQ(parse_calls(begin), content(begin.substr(kCalls.size())));
}

TEST(ToolCallTest, ACallThatIsWholeButNotClosedIsACall) {
  const std::string open = kCall + "function" + kSep + "f\n```json\n{}\n``";
  const ToolCall expected{"function", "f", "{}"};
  EXPECT_EQ(parse_calls(kCalls + open), calls({expected}));
  EXPECT_EQ(parse_calls(kCalls + open + kEndCalls), calls({expected}));
  EXPECT_EQ(parse_calls(kCalls + open + open), calls({expected, expected}));
}

TEST(ToolCallTest, ControlTokensInsideArgumentsAreTheirText) {
  const std::string arguments = "{\"a\": \"<think></think>" + kSep + kCalls + "\"}";
  EXPECT_EQ(parse_calls(call("f", arguments)), calls({{"function", "f", arguments}}));
}

TEST(ToolCallTest, StopStringsDoNotApplyToCallsButToRawOnes) {
  const auto stop = [] { return StopMatcher::create({"STOP"}, false).value(); };
  const std::string arguments = "{\"a\": \"STOP\"}";
  EXPECT_EQ(parse_calls(call("f", arguments), stop()), calls({{"function", "f", arguments}}));
  EXPECT_EQ(parse_calls(kCall + "x STOP" + kEndCall + call("f", "{}"), stop()),
            content(kCall + "x "));
}

TEST(ToolCallTest, CallsInReasoningAreReasoning) {
  const ChatOutput output = parse_calls("<think>" + call("f", "{}") + "</think>");
  EXPECT_EQ(output.reasoning, call("f", "{}"));
  EXPECT_THAT(output.tool_calls, IsEmpty());
}

TEST(JsonCheckTest, AcceptsObjectsWithinTheLimits) {
  const auto nested = [](size_t depth) {
    return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  EXPECT_TRUE(is_json_object("{}"));
  EXPECT_TRUE(is_json_object(" {\"a\": [1, -2.5e3, null, true, \"\\u00e9\"], \"a\": {}} "));
  EXPECT_TRUE(is_json_object(nested(kMaxArgumentsDepth)));
  EXPECT_FALSE(is_json_object(nested(kMaxArgumentsDepth + 1)));
  EXPECT_FALSE(is_json_object(nested(kMaxArgumentsBytes / 2 - 10)));
  EXPECT_TRUE(is_json_object("{\"a\": \"" + std::string(kMaxArgumentsBytes - 9, 'x') + "\"}"));
  EXPECT_FALSE(is_json_object("{\"a\": \"" + std::string(kMaxArgumentsBytes - 8, 'x') + "\"}"));
}

TEST(JsonCheckTest, RefusesAllElse) {
  for (const std::string_view text : {"",
                                      "[]",
                                      "1",
                                      "\"x\"",
                                      "null",
                                      "{",
                                      "{\"a\"}",
                                      "{\"a\": 1,}",
                                      "{} {}",
                                      "{'a': 1}",
                                      "{\"a\": NaN}",
                                      "{\"a\": \"\xC3\"}"}) {
    EXPECT_FALSE(is_json_object(text)) << text;
  }
}

}  // namespace
}  // namespace r1d::chat
