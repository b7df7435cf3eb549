// SPDX-License-Identifier: Apache-2.0
// One sequence's output, taken apart: as a stream of events, and whole.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace r1d::chat {

// A step of a streamed answer. Per tool call: one kToolCallBegin, any number of kToolCallArguments,
// one kToolCallEnd; the calls come one after another and `call_idx` counts them from 0.
struct OutputEvent {
  enum class Kind : uint8_t {
    kReasoning,
    kContent,
    kToolCallBegin,      // `type` and `name`
    kToolCallArguments,  // `text` goes on
    kToolCallEnd,        // `malformed`
  };

  Kind kind = Kind::kContent;
  std::string text = {};
  int32_t call_idx = 0;
  std::string type = {};  // "function"
  std::string name = {};
  // The arguments are no JSON object: badly written, or cut off by the end of the output.
  bool malformed = false;
};

struct ToolCall {
  std::string type;
  std::string name;
  std::string arguments = {};  // as the model wrote them; a JSON object unless `malformed`
  bool malformed = false;

  bool operator==(const ToolCall&) const = default;
};

// A whole answer. It is the sum of the events and of nothing else: a client that adds up a stream
// gets what a client that waits gets.
struct ChatOutput {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;

  // Events in their order.
  void add(const OutputEvent& event);

  bool operator==(const ChatOutput&) const = default;
};

}  // namespace r1d::chat
