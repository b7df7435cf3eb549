// SPDX-License-Identifier: Apache-2.0
#include "chat/tool_call_parser.h"

#include <algorithm>
#include <utility>

#include "chat/json_check.h"

namespace r1d::chat {
namespace {

using Kind = OutputEvent::Kind;

// Names have at most 64 characters in OpenAI's API; the rest is room for spaces and the fence.
constexpr size_t kMaxTypeBytes = 64;
constexpr size_t kMaxNameBytes = 1024;

bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_name_byte(char c) {
  return is_letter(c) || (c >= '0' && c <= '9') || static_cast<unsigned char>(c) >= 0x80 ||
         std::string_view("_-.:/").find(c) != std::string_view::npos;
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kWhitespace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kWhitespace) + 1 - begin);
}

// Reads a header from the left. Its answer about a text is its answer about every longer one,
// unless that answer is kIncomplete.
struct Header {
  enum class Verdict { kIncomplete, kMalformed, kComplete };

  Verdict verdict = Verdict::kIncomplete;
  std::string_view name;
  size_t arguments_at = 0;
};

class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text.substr(0, kMaxNameBytes)) {}

  Header read() {
    skip(is_space);
    const size_t begin = at_;
    skip(is_name_byte);
    const std::string_view name = text_.substr(begin, at_ - begin);
    if (at_end()) return unfinished();
    if (name.empty()) return {Header::Verdict::kMalformed, {}, 0};
    skip(is_space);
    if (!at_end() && text_[at_] == '`') {
      const size_t fence = at_;
      skip([](char c) { return c == '`'; });
      if (at_end()) return unfinished();
      if (at_ - fence != 3) return {Header::Verdict::kMalformed, {}, 0};
      skip(is_letter);
      skip(is_space);
    }
    if (at_end()) return unfinished();
    if (text_[at_] != '{') return {Header::Verdict::kMalformed, {}, 0};
    return {Header::Verdict::kComplete, name, at_};
  }

 private:
  static bool is_space(char c) { return kWhitespace.find(c) != std::string_view::npos; }

  template <typename Predicate>
  void skip(Predicate wanted) {
    while (!at_end() && wanted(text_[at_])) ++at_;
  }

  [[nodiscard]] bool at_end() const { return at_ == text_.size(); }

  [[nodiscard]] Header unfinished() const {
    const bool too_long = text_.size() == kMaxNameBytes;
    return {too_long ? Header::Verdict::kMalformed : Header::Verdict::kIncomplete, {}, 0};
  }

  std::string_view text_;
  size_t at_ = 0;
};

void emit(Kind kind, std::string text, std::vector<OutputEvent>& events) {
  if (text.empty()) return;
  events.push_back({.kind = kind, .text = std::move(text)});
}

}  // namespace

void ClosingFence::push(std::string_view text, std::string& arguments) {
  const auto release = [&] {
    arguments += held_;
    held_.clear();
    num_backticks_ = 0;
    space_follows_ = false;
  };
  for (const char c : text) {
    if (c == '`') {
      if (num_backticks_ == 3 || space_follows_) release();
      ++num_backticks_;
      held_ += c;
    } else if (kWhitespace.find(c) != std::string_view::npos) {
      space_follows_ = num_backticks_ > 0;
      held_ += c;
    } else {
      release();
      arguments += c;
    }
  }
}

void ToolCallParser::text(std::string_view text, std::vector<OutputEvent>& events) {
  switch (state_) {
    case State::kType:
      raw_ += text;
      type_ += text;
      if (type_.size() > kMaxTypeBytes) give_up(events);
      break;
    case State::kName:
      raw_ += text;
      after_separator_ += text;
      decide_name(events);
      break;
    case State::kArguments:
      arguments(text, events);
      break;
    case State::kRaw:
      emit(Kind::kContent, std::string(text), events);
      break;
  }
}

void ToolCallParser::separator(std::string_view tag, std::vector<OutputEvent>& events) {
  if (state_ == State::kArguments || state_ == State::kRaw) return text(tag, events);
  raw_ += tag;
  type_ = std::string(trimmed(type_));
  const bool is_type = std::all_of(type_.begin(), type_.end(), is_name_byte);
  if (state_ == State::kName || !is_type) return give_up(events);
  if (type_.empty()) type_ = "function";
  state_ = State::kName;
}

void ToolCallParser::decide_name(std::vector<OutputEvent>& events) {
  const Header header = HeaderReader(after_separator_).read();
  if (header.verdict == Header::Verdict::kIncomplete) return;
  if (header.verdict == Header::Verdict::kMalformed) return give_up(events);
  state_ = State::kArguments;
  events.push_back(
      {.kind = Kind::kToolCallBegin, .type = std::move(type_), .name = std::string(header.name)});
  arguments(std::string_view(after_separator_).substr(header.arguments_at), events);
}

void ToolCallParser::arguments(std::string_view text, std::vector<OutputEvent>& events) {
  std::string released;
  fence_.push(text, released);
  if (arguments_.size() <= kMaxArgumentsBytes) arguments_ += released;
  emit(Kind::kToolCallArguments, std::move(released), events);
}

void ToolCallParser::give_up(std::vector<OutputEvent>& events) {
  state_ = State::kRaw;
  emit(Kind::kContent, std::exchange(raw_, {}), events);
}

void ToolCallParser::end(std::string_view end_tag, std::vector<OutputEvent>& events) {
  if (state_ == State::kArguments) {
    events.push_back({.kind = Kind::kToolCallEnd, .malformed = !is_json_object(arguments_)});
    return;
  }
  if (state_ != State::kRaw) give_up(events);
  text(end_tag, events);
}

}  // namespace r1d::chat
