// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/output_parser.h"

#include <algorithm>
#include <utility>

#include "chat/tag_scanner.h"
#include "chat/tool_call_parser.h"

namespace r1d::chat {
namespace {

using Kind = OutputEvent::Kind;

// The tags that mean something in a phase, for those matched in text. Text alone leads from
// kUndecided and kTools to kContent, and text is cut off at a tag of the old phase: so the sets of
// those two hold that of kContent, or the split into tokens would show.
constexpr TagSet kReasoningTags = {Tag::kThink, Tag::kEndThink};
constexpr TagSet kContentTags = {Tag::kToolCallsBegin, Tag::kToolCallsEnd, Tag::kToolCallBegin};
constexpr TagSet kUndecidedTags = {
    Tag::kThink, Tag::kToolCallsBegin, Tag::kToolCallsEnd, Tag::kToolCallBegin};
constexpr TagSet kCallTags = {
    Tag::kToolSep, Tag::kToolCallEnd, Tag::kToolCallsEnd, Tag::kToolCallBegin};

TagSet tags_of(Phase phase, bool in_call) {
  if (in_call) return kCallTags;
  if (phase == Phase::kUndecided) return kUndecidedTags;
  return phase == Phase::kReasoning ? kReasoningTags : kContentTags;
}

std::string_view without_tag(std::string_view text, std::string_view tag) {
  if (text.ends_with(tag)) text.remove_suffix(tag.size());
  return text;
}

}  // namespace

OutputParser::OutputParser(const ControlTokens& tokens,
                           const OutputParserOptions& options,
                           StopMatcher stops)
    : options_(options),
      tags_(std::make_unique<const TagScanner>(tokens, options.parse_tools)),
      stops_(std::move(stops)),
      phase_(options.start_in_reasoning ? Phase::kReasoning : Phase::kUndecided) {
  if (!options_.split_reasoning) options_.trim_newlines = false;
}

OutputParser::OutputParser(OutputParser&&) noexcept = default;
OutputParser& OutputParser::operator=(OutputParser&&) noexcept = default;
OutputParser::~OutputParser() = default;

std::vector<OutputEvent> OutputParser::push(int32_t token_id, std::string_view text) {
  if (finished_ || stopped()) return {};
  const bool was_reasoning = phase_ == Phase::kReasoning;
  const std::optional<Tag> tag = tags_->by_id(token_id);
  pending_ += tag ? without_tag(text, tags_->text_of(*tag)) : text;
  drain(/*is_last=*/tag.has_value());
  if (tag && !stopped()) on_tag(*tag);
  if (was_reasoning && phase_ == Phase::kReasoning) ++reasoning_tokens_;
  return std::exchange(events_, {});
}

std::vector<OutputEvent> OutputParser::finish(std::string_view tail) {
  if (finished_ || stopped()) return {};
  pending_ += tail;
  drain(/*is_last=*/true);
  if (call_) end_call({});
  if (phase_ == Phase::kUndecided) enter_content();
  flush_content();
  finished_ = true;
  return std::exchange(events_, {});
}

void OutputParser::drain(bool is_last) {
  std::string_view rest = pending_;
  while (!rest.empty() && !stopped()) {
    const TagHit hit = tags_->find(rest, tags_of(phase_, call_ != nullptr), is_last);
    if (hit.text_bytes > 0) {
      on_text(rest.substr(0, hit.text_bytes));
      rest.remove_prefix(hit.text_bytes);
    } else if (hit.tag) {
      on_tag(*hit.tag);
      rest.remove_prefix(tags_->text_of(*hit.tag).size());
    } else {
      break;
    }
  }
  pending_.erase(0, pending_.size() - rest.size());
}

void OutputParser::on_text(std::string_view text) {
  if (call_) {
    std::vector<OutputEvent> events;
    call_->text(text, events);
    return from_call(std::move(events));
  }
  switch (phase_) {
    case Phase::kUndecided:
      return undecided_text(text);
    case Phase::kReasoning:
      return reasoning(text);
    case Phase::kContent:
      return content(text);
    case Phase::kTools:
      return text_between_calls(text);
  }
}

void OutputParser::on_tag(Tag tag) {
  if (call_) return call_tag(tag);
  switch (phase_) {
    case Phase::kUndecided:
      return undecided_tag(tag);
    case Phase::kReasoning:
      return reasoning_tag(tag);
    case Phase::kContent:
    case Phase::kTools:
      return content_tag(tag);
  }
}

void OutputParser::undecided_text(std::string_view text) {
  if (text.find_first_not_of(kWhitespace) == std::string_view::npos) {
    leading_space_ += text;
    return;
  }
  enter_content();
  content(text);
}

void OutputParser::undecided_tag(Tag tag) {
  if (tag == Tag::kThink) {
    content_unless_split(leading_space_);
    content_unless_split(tags_->text_of(tag));
    phase_ = Phase::kReasoning;
    return;
  }
  enter_content();
  content_tag(tag);
}

void OutputParser::reasoning_tag(Tag tag) {
  const bool is_tool_tag = tag != Tag::kThink && tag != Tag::kEndThink;
  if (is_tool_tag) return reasoning(tags_->text_of(tag));
  content_unless_split(tags_->text_of(tag));
  if (tag == Tag::kEndThink) phase_ = Phase::kContent;
}

void OutputParser::content_tag(Tag tag) {
  switch (tag) {
    case Tag::kThink:
    case Tag::kEndThink:
      return content_unless_split(tags_->text_of(tag));
    case Tag::kToolCallsBegin:
      return enter_tools();
    case Tag::kToolCallBegin:
      enter_tools();
      call_ = std::make_unique<ToolCallParser>(tags_->text_of(tag));
      return;
    case Tag::kToolCallsEnd:
    case Tag::kToolCallEnd:
    case Tag::kToolSep:
      return;
  }
}

void OutputParser::call_tag(Tag tag) {
  const std::string& text = tags_->text_of(tag);
  switch (tag) {
    case Tag::kToolSep: {
      std::vector<OutputEvent> events;
      call_->separator(text, events);
      return from_call(std::move(events));
    }
    case Tag::kToolCallEnd:
      return end_call(text);
    case Tag::kToolCallsEnd:
    case Tag::kToolCallBegin:
      end_call({});
      if (!stopped()) content_tag(tag);
      return;
    case Tag::kThink:
    case Tag::kEndThink:
    case Tag::kToolCallsBegin:
      return on_text(text);
  }
}

void OutputParser::text_between_calls(std::string_view text) {
  const size_t visible = text.find_first_not_of(kWhitespace);
  if (visible == std::string_view::npos) return;
  phase_ = Phase::kContent;
  content(text.substr(visible));
}

void OutputParser::enter_content() {
  phase_ = Phase::kContent;
  content(leading_space_);
}

void OutputParser::enter_tools() {
  phase_ = Phase::kTools;
  flush_content();
}

void OutputParser::end_call(std::string_view end_tag) {
  const std::unique_ptr<ToolCallParser> call = std::move(call_);
  std::vector<OutputEvent> events;
  call->end(end_tag, events);
  from_call(std::move(events));
}

void OutputParser::reasoning(std::string_view text) {
  if (!options_.split_reasoning) return content(text);
  if (!options_.trim_newlines) return emit({.kind = Kind::kReasoning, .text = std::string(text)});
  if (std::exchange(at_reasoning_start_, false) && text.starts_with('\n')) text.remove_prefix(1);
  const size_t visible_bytes = text.find_last_not_of('\n') + 1;  // 0 if there are only newlines
  if (visible_bytes > 0) {
    std::string released(std::exchange(reasoning_newlines_, 0), '\n');
    released += text.substr(0, visible_bytes);
    emit({.kind = Kind::kReasoning, .text = std::move(released)});
  }
  reasoning_newlines_ += text.size() - visible_bytes;
}

void OutputParser::content(std::string_view text) {
  if (options_.trim_newlines && at_content_start_) {
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
    at_content_start_ = text.empty();
  }
  std::string released;
  stops_.push(text, released);
  emit({.kind = Kind::kContent, .text = std::move(released)});
}

void OutputParser::content_unless_split(std::string_view text) {
  if (!options_.split_reasoning) content(text);
}

void OutputParser::flush_content() {
  std::string released;
  stops_.flush(released);
  emit({.kind = Kind::kContent, .text = std::move(released)});
}

void OutputParser::from_call(std::vector<OutputEvent> events) {
  for (OutputEvent& event : events) {
    if (stopped()) return;
    if (event.kind == Kind::kContent) {
      content(event.text);
      continue;
    }
    if (event.kind == Kind::kToolCallBegin) ++num_tool_calls_;
    event.call_idx = num_tool_calls_ - 1;
    emit(std::move(event));
  }
}

void OutputParser::emit(OutputEvent event) {
  const bool is_text = event.kind == Kind::kReasoning || event.kind == Kind::kContent ||
                       event.kind == Kind::kToolCallArguments;
  if (is_text && event.text.empty()) return;
  if (is_text && !events_.empty() && events_.back().kind == event.kind) {
    events_.back().text += event.text;
  } else {
    events_.push_back(std::move(event));
  }
}

}  // namespace r1d::chat
