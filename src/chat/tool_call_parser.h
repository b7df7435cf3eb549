// SPDX-License-Identifier: Apache-2.0
// One tool call, from behind its begin tag to its end tag:
//
//   function <tool_sep> NAME "\n```json\n" ARGUMENTS "\n```"
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "r1d/chat/output.h"

namespace r1d::chat {

// What an answer may have around its parts.
inline constexpr std::string_view kWhitespace = " \t\n\r\v\f";

// Holds back what may be the closing fence: white space, up to three backticks, white space. A JSON
// object ends in neither, so what is still held when the call ends is no part of the arguments.
class ClosingFence {
 public:
  // Appends to `arguments` what is certainly not the fence.
  void push(std::string_view text, std::string& arguments);

 private:
  std::string held_;
  int num_backticks_ = 0;
  bool space_follows_ = false;
};

// Nothing is emitted until the header is whole: a separator, a name and the "{" of the arguments. A
// call whose header cannot become that is content, raw, its tags with it. After the header,
// arguments stream as they come, and a call that proves to be no JSON then is marked at its end.
//
// Accepted besides the format above: no type (it is "function"), spaces around type and name, no
// line break around the fences, another language than json or none, no opening or no closing fence.
//
// `call_idx` of the events is the caller's to set. Confined to one thread.
class ToolCallParser {
 public:
  // `begin_tag`: the tag that opened the call, for its raw text.
  explicit ToolCallParser(std::string_view begin_tag) : raw_(begin_tag) {}

  void text(std::string_view text, std::vector<OutputEvent>& events);
  void separator(std::string_view tag, std::vector<OutputEvent>& events);
  // `end_tag` is empty where the call was not closed.
  void end(std::string_view end_tag, std::vector<OutputEvent>& events);

 private:
  enum class State { kType, kName, kArguments, kRaw };

  void decide_name(std::vector<OutputEvent>& events);
  void arguments(std::string_view text, std::vector<OutputEvent>& events);
  void give_up(std::vector<OutputEvent>& events);

  State state_ = State::kType;
  std::string raw_;  // all of the call until it is decided
  std::string type_;
  std::string after_separator_;  // name, fence, "{"
  ClosingFence fence_;
  std::string arguments_;  // for the check at the end; stops growing over its limit
};

}  // namespace r1d::chat
