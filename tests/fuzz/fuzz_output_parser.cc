// SPDX-License-Identifier: Apache-2.0
// Any text as a model's output, its tags in text, in any split: the events add up to the whole
// result.
//
// Byte 0: options. Byte 1: seed of the split. The rest is text, where a few bytes stand for a tag
// each.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/chat/output_parser.h"

using r1d::chat::ChatOutput;
using r1d::chat::ControlTokens;
using r1d::chat::OutputEvent;
using r1d::chat::OutputParser;
using r1d::chat::OutputParserOptions;
using r1d::chat::StopMatcher;

namespace {

// Tags are long; a byte for each lets the fuzzer arrange them.
std::string with_tags(std::string_view bytes) {
  const ControlTokens tokens;
  std::string text;
  for (const char byte : bytes) {
    switch (byte) {
      case '\x01':
        text += tokens.think.text;
        break;
      case '\x02':
        text += tokens.end_think.text;
        break;
      case '\x03':
        text += tokens.tool_calls_begin.text;
        break;
      case '\x04':
        text += tokens.tool_calls_end.text;
        break;
      case '\x05':
        text += tokens.tool_call_begin.text;
        break;
      case '\x06':
        text += tokens.tool_call_end.text;
        break;
      case '\x07':
        text += tokens.tool_sep.text;
        break;
      default:
        text += byte;
    }
  }
  return text;
}

OutputParser make_parser(uint8_t bits) {
  const OutputParserOptions options = {.start_in_reasoning = (bits & 1) != 0,
                                       .split_reasoning = (bits & 2) == 0,
                                       .parse_tools = (bits & 4) == 0,
                                       .trim_newlines = (bits & 8) == 0};
  const bool stops = (bits & 16) != 0;
  return OutputParser(
      ControlTokens{},
      options,
      stops ? StopMatcher::create({"aab", "\n\n", "`"}, (bits & 32) != 0).value() : StopMatcher());
}

// Adds up events, and holds each to its contract on the way.
struct Sum {
  ChatOutput output;
  bool in_call = false;

  void add(const OutputEvent& event) {
    using Kind = OutputEvent::Kind;
    const bool of_call = event.kind == Kind::kToolCallArguments || event.kind == Kind::kToolCallEnd;
    R1D_CHECK(in_call == of_call);
    if (event.kind == Kind::kToolCallBegin) in_call = true;
    if (event.kind == Kind::kToolCallEnd) in_call = false;
    output.add(event);
    if (in_call || of_call) {
      R1D_CHECK(event.call_idx + 1 == static_cast<int32_t>(output.tool_calls.size()));
    }
  }
};

ChatOutput parse(OutputParser parser, std::string_view text, uint32_t seed, bool whole) {
  Sum sum;
  while (!text.empty()) {
    seed = seed * 1664525u + 1013904223u;
    const size_t bytes = whole ? text.size() : 1 + (seed >> 28);
    for (const OutputEvent& event : parser.push(-1, text.substr(0, bytes))) sum.add(event);
    text.remove_prefix(std::min(bytes, text.size()));
  }
  for (const OutputEvent& event : parser.finish()) sum.add(event);
  R1D_CHECK(!sum.in_call);
  return std::move(sum.output);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string text =
      with_tags(std::string_view(reinterpret_cast<const char*>(data) + 2, size - 2));
  const ChatOutput whole = parse(make_parser(data[0]), text, 0, true);
  R1D_CHECK(parse(make_parser(data[0]), text, data[1], false) == whole);
  return 0;
}
