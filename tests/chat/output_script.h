// SPDX-License-Identifier: Apache-2.0
// A model's output as a test writes it, and the ways to cut it into tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/chat/output_parser.h"

namespace r1d::chat {

inline constexpr int32_t kTextToken = 7;

inline const std::string kCalls = ControlTokens{}.tool_calls_begin.text;
inline const std::string kEndCalls = ControlTokens{}.tool_calls_end.text;
inline const std::string kCall = ControlTokens{}.tool_call_begin.text;
inline const std::string kEndCall = ControlTokens{}.tool_call_end.text;
inline const std::string kSep = ControlTokens{}.tool_sep.text;

// The ids of R1's tokenizer.
inline ControlTokens r1_tokens() {
  return ControlTokens::resolve([](std::string_view text) -> std::optional<int32_t> {
    if (text == "<think>") return 128798;
    if (text == "</think>") return 128799;
    if (text == kCalls) return 128806;
    if (text == kEndCalls) return 128807;
    if (text == kCall) return 128808;
    if (text == kEndCall) return 128809;
    if (text == kSep) return 128814;
    return std::nullopt;
  });
}

// A distill's: no tool tags.
inline ControlTokens distill_tokens() {
  ControlTokens tokens;
  tokens.think.id = 151648;
  tokens.end_think.id = 151649;
  return tokens;
}

struct Token {
  int32_t id = kTextToken;
  std::string text;
};
using Script = std::vector<Token>;

// `text` with each tag that has an id as one token, and the stretches between them as one token
// each.
inline Script script_of(std::string_view text, const ControlTokens& tokens) {
  Script script;
  std::string stretch;
  const auto flush = [&] {
    if (!stretch.empty()) script.push_back({kTextToken, std::exchange(stretch, {})});
  };
  while (!text.empty()) {
    const ControlToken* found = nullptr;
    for (const ControlToken* token : {&tokens.think,
                                      &tokens.end_think,
                                      &tokens.tool_calls_begin,
                                      &tokens.tool_calls_end,
                                      &tokens.tool_call_begin,
                                      &tokens.tool_call_end,
                                      &tokens.tool_sep}) {
      if (token->id && text.starts_with(token->text)) found = token;
    }
    if (found != nullptr) {
      flush();
      script.push_back({*found->id, found->text});
      text.remove_prefix(found->text.size());
    } else {
      stretch += text.front();
      text.remove_prefix(1);
    }
  }
  flush();
  return script;
}

inline size_t size_of(const Script& script) {
  size_t size = 0;
  for (const Token& token : script) size += token.text.size();
  return size;
}

// Cuts the text token that byte `at` of the output lies in; a control token stays whole.
inline Script cut_at(const Script& script, size_t at) {
  Script cut;
  size_t begin = 0;
  for (const Token& token : script) {
    const bool inside = at > begin && at < begin + token.text.size();
    if (token.id == kTextToken && inside) {
      cut.push_back({kTextToken, token.text.substr(0, at - begin)});
      cut.push_back({kTextToken, token.text.substr(at - begin)});
    } else {
      cut.push_back(token);
    }
    begin += token.text.size();
  }
  return cut;
}

// Text tokens of 1 to `max_bytes` bytes, and now and then one without text.
inline Script cut_at_random(const Script& script, size_t max_bytes, std::mt19937& random) {
  Script cut;
  for (const Token& token : script) {
    if (token.id != kTextToken) {
      cut.push_back(token);
      continue;
    }
    for (size_t at = 0; at < token.text.size();) {
      if (random() % 8 == 0) cut.push_back({kTextToken, ""});
      cut.push_back({kTextToken, token.text.substr(at, 1 + random() % max_bytes)});
      at += cut.back().text.size();
    }
  }
  return cut;
}

inline ChatOutput run(OutputParser parser, const Script& script) {
  ChatOutput output;
  for (const Token& token : script) {
    for (const OutputEvent& event : parser.push(token.id, token.text)) output.add(event);
  }
  for (const OutputEvent& event : parser.finish()) output.add(event);
  return output;
}

inline void PrintTo(const ToolCall& call, std::ostream* out) {
  *out << call.type << ' ' << call.name << (call.malformed ? " malformed " : " ")
       << testing::PrintToString(call.arguments);
}

inline void PrintTo(const ChatOutput& output, std::ostream* out) {
  *out << "reasoning " << testing::PrintToString(output.reasoning) << ", content "
       << testing::PrintToString(output.content) << ", calls "
       << testing::PrintToString(output.tool_calls);
}

}  // namespace r1d::chat
