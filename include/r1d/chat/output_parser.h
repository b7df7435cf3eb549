// SPDX-License-Identifier: Apache-2.0
// Splits one sequence's output into reasoning, content and tool calls while it is generated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "r1d/chat/control_tokens.h"
#include "r1d/chat/output.h"
#include "r1d/chat/stop_matcher.h"

namespace r1d::chat {

enum class Tag : uint8_t;
class TagScanner;
class ToolCallParser;

struct OutputParserOptions {
  // The prompt ends with <think> or "<think>\n": the output goes on inside. Otherwise a first
  // <think>, white space before it aside, decides.
  bool start_in_reasoning = false;
  // Off: reasoning and its tags are content as they stand, stop strings apply to them and no
  // newline is trimmed. phase() and reasoning_tokens() are the same.
  bool split_reasoning = true;
  // Off: the tool tags are ordinary text.
  bool parse_tools = true;
  // The model writes "<think>\n...\n</think>\n\nanswer". On: one newline at the start of the
  // reasoning, all at its end and all at the start of the content are dropped. Those at the end of
  // the content stay.
  bool trim_newlines = true;
};

enum class Phase : uint8_t {
  kUndecided,  // nothing but white space so far
  kReasoning,
  kContent,
  kTools,  // in a tool call, or behind one with nothing visible since
};

// Lifecycle: push() per token, finish() once. After a stop string or finish() there are no events.
//
// Reasoning: from <think>, or from the start if the prompt opened it, to </think>. A further
// <think> in it is dropped; a tool tag in it is text. Unclosed, all of the output is reasoning.
//
// Content: a control token without a meaning there (think tags, closing tool tags) is dropped.
// Think tags that are matched in text, for lack of ids, are text there.
//
// Tool calls: one begins at its begin tag, with or without the tag around all calls before it. It
// ends at its end tag, at the next call's begin tag, at the end tag of all calls, or with the
// output. White space between calls is dropped; other text there is content again.
//
// Malformed calls: without a separator, a name and the "{" of its arguments, a call is content: its
// raw text with its tags. Once it has these it is announced to the client and its arguments stream.
// If they prove not to be a JSON object, it stays a call, with the arguments as written, and its
// end is marked malformed.
//
// Stop strings: looked for in content alone, raw calls included, after trimming. Content before and
// after a tool call is two texts: no match spans the call.
//
// The events add up to the same ChatOutput for every split of the same text into tokens. Text is
// held back only while it may be a tag, a newline to trim, the header or closing fence of a call,
// or a stop string. Linear in the length of the output.
//
// Threads: confined to one.
class OutputParser {
 public:
  OutputParser(const ControlTokens& tokens, const OutputParserOptions& options, StopMatcher stops);
  OutputParser(OutputParser&&) noexcept;
  OutputParser& operator=(OutputParser&&) noexcept;
  ~OutputParser();

  // Every token of the output but the one that ended it, also those that released no text. `text`
  // is what the streaming detokenizer released with it; that of a control token ends with the
  // token's own text.
  [[nodiscard]] std::vector<OutputEvent> push(int32_t token_id, std::string_view text);

  // The output ends, for whatever reason. `tail` is what the detokenizer still held.
  [[nodiscard]] std::vector<OutputEvent> finish(std::string_view tail = {});

  [[nodiscard]] Phase phase() const { return phase_; }
  // A stop string has matched: the sequence should end.
  [[nodiscard]] bool stopped() const { return stops_.matched_idx().has_value(); }
  [[nodiscard]] std::optional<size_t> stop_idx() const { return stops_.matched_idx(); }
  // Tokens between the tags. The tags do not count; where a tag is spelled in several tokens, all
  // but the last of </think> do, as they are not known to be one before.
  [[nodiscard]] int64_t reasoning_tokens() const { return reasoning_tokens_; }
  [[nodiscard]] int32_t num_tool_calls() const { return num_tool_calls_; }

 private:
  // What the text and the tags mean in each phase.
  void drain(bool is_last);
  void on_text(std::string_view text);
  void on_tag(Tag tag);
  void undecided_text(std::string_view text);
  void undecided_tag(Tag tag);
  void reasoning_tag(Tag tag);
  void content_tag(Tag tag);
  void call_tag(Tag tag);
  void text_between_calls(std::string_view text);
  void enter_content();
  void enter_tools();
  void end_call(std::string_view end_tag);

  // Where it goes.
  void reasoning(std::string_view text);
  void content(std::string_view text);
  void content_unless_split(std::string_view text);
  void flush_content();
  void from_call(std::vector<OutputEvent> events);
  void emit(OutputEvent event);

  OutputParserOptions options_;
  std::unique_ptr<const TagScanner> tags_;
  StopMatcher stops_;

  Phase phase_;
  bool finished_ = false;
  std::string pending_;                   // text that may become a tag
  std::string leading_space_;             // of kUndecided
  std::unique_ptr<ToolCallParser> call_;  // the open one
  bool at_reasoning_start_ = true;
  bool at_content_start_ = true;
  size_t reasoning_newlines_ = 0;  // held back: the last ones are dropped
  int64_t reasoning_tokens_ = 0;
  int32_t num_tool_calls_ = 0;
  std::vector<OutputEvent> events_;  // of the push or finish in progress
};

}  // namespace r1d::chat
