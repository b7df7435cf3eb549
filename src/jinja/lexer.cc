// SPDX-License-Identifier: Apache-2.0
// The rules are those of Jinja2's lexer with trim_blocks and lstrip_blocks:
//   {%- {#- {{-   cut the white space before; -%} -#} -}} that behind
//   {% {#         alone at the start of a line: the blanks before go, unless written {%+ or {#+
//   %} #}         the line end behind goes, unless written +%} or +#}
#include "jinja/lexer.h"

#include <algorithm>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/string_literal.h"
#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

// Looking a name up costs its length, which a step does not count.
constexpr size_t kMaxNameBytes = 256;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name_part(char c) {
  return is_name_start(c) || is_digit(c);
}

// One line end for all kinds, and none at the very end.
std::string normalized(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
      continue;
    }
    text += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)) {}

  absl::StatusOr<std::vector<Token>> run() {
    while (at_ < source_.size()) R1D_RETURN_IF_ERROR(take_data_and_tag());
    emit(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  enum class End { kBlock, kVariable, kComment };

  [[nodiscard]] std::string_view rest() const { return std::string_view(source_).substr(at_); }

  template <typename... Args>
  absl::Status fail(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid_argument("line {}: {}", line_, fmt::format(format, std::forward<Args>(args)...));
  }

  void emit(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }

  // Moves on and counts lines.
  void advance(size_t bytes) {
    const std::string_view passed = rest().substr(0, bytes);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    at_ += passed.size();
    if (!passed.empty()) at_line_start_ = passed.back() == '\n';
  }

  void skip_spaces() { advance(stripped(rest(), nullptr, {.left = true, .right = false}).begin); }

  // Where the next tag begins; the end of the source when there is none.
  [[nodiscard]] size_t find_tag() const {
    for (size_t at = source_.find('{', at_); at != std::string::npos; at = source_.find('{', at)) {
      ++at;
      const char next = at < source_.size() ? source_[at] : '\0';
      if (next == '%' || next == '{' || next == '#') return at - 1;
    }
    return source_.size();
  }

  // Emits the data up to `tag`, where "{%", "{{" or "{#" stands, and cuts blanks as its sign says.
  void emit_data(size_t tag) {
    std::string_view data = std::string_view(source_).substr(at_, tag - at_);
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      data = data.substr(0, stripped(data, nullptr, {.left = false, .right = true}).end);
    } else if (sign != '+' && source_[tag + 1] != '{') {
      const size_t line_begin = data.rfind('\n') + 1;  // npos + 1 is 0
      const std::string_view blanks = data.substr(line_begin);
      const bool only_blanks =
          stripped(blanks, nullptr, {.left = true, .right = false}).begin == blanks.size();
      if ((line_begin > 0 || at_line_start_) && only_blanks) data = data.substr(0, line_begin);
    }
    if (!data.empty()) emit(Token::Kind::kData, std::string(data));
    advance(tag - at_);
  }

  // Behind "{%" and its like: skips the sign.
  void skip_tag_begin() {
    advance(2);
    if (rest().starts_with('-') || rest().starts_with('+')) advance(1);
  }

  // If the tag ends here, skips its end with the white space that goes with it.
  bool skip_tag_end(End kind) {
    const std::string_view mark = kind == End::kBlock ? "%}" : kind == End::kVariable ? "}}" : "#}";
    const std::string_view text = rest();
    if (text.starts_with('-') && text.substr(1).starts_with(mark)) {
      advance(3);
      skip_spaces();
      return true;
    }
    if (kind != End::kVariable && text.starts_with('+') && text.substr(1).starts_with(mark)) {
      advance(3);
      return true;
    }
    if (!text.starts_with(mark)) return false;
    advance(2);
    if (kind != End::kVariable && rest().starts_with('\n')) advance(1);
    return true;
  }

  absl::Status take_data_and_tag() {
    const size_t tag = find_tag();
    if (tag == source_.size()) {
      emit(Token::Kind::kData, std::string(rest()));
      advance(rest().size());
      return absl::OkStatus();
    }
    emit_data(tag);
    switch (source_[tag + 1]) {
      case '#':
        return skip_comment();
      case '{':
        return take_tag(Token::Kind::kVariableBegin, End::kVariable);
      default:
        if (tag_name() == "raw") return take_raw();
        return take_tag(Token::Kind::kBlockBegin, End::kBlock);
    }
  }

  absl::Status skip_comment() {
    const int first_line = line_;
    skip_tag_begin();
    const size_t mark = rest().find("#}");
    if (mark == std::string_view::npos) {
      return invalid_argument("line {}: a comment has no end", first_line);
    }
    // The sign before the mark belongs to the end, if there is one.
    const bool has_sign = mark > 0 && (rest()[mark - 1] == '-' || rest()[mark - 1] == '+');
    advance(has_sign ? mark - 1 : mark);
    skip_tag_end(End::kComment);
    return absl::OkStatus();
  }

  // The first name of the block tag that stands here; empty where it begins otherwise.
  [[nodiscard]] std::string_view tag_name() const {
    std::string_view text = rest().substr(2);
    if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
    text.remove_prefix(stripped(text, nullptr, {.left = true, .right = false}).begin);
    size_t end = 0;
    while (end < text.size() && is_name_part(text[end])) ++end;
    return text.substr(0, end);
  }

  // Behind the name of a raw or endraw tag whose end must follow.
  absl::Status skip_raw_tag(std::string_view name) {
    skip_tag_begin();
    skip_spaces();
    advance(name.size());
    skip_spaces();
    if (name == "raw" && rest().starts_with("%}")) {  // keeps the line end behind it
      advance(2);
      return absl::OkStatus();
    }
    if (skip_tag_end(End::kBlock)) return absl::OkStatus();
    return fail("the tag '{}' takes nothing", name);
  }

  absl::Status take_raw() {
    const int first_line = line_;
    R1D_RETURN_IF_ERROR(skip_raw_tag("raw"));
    const size_t begin = at_;
    const int begin_line = line_;
    const bool begins_line = at_line_start_;
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      advance(tag - at_);
      if (tag_name() != "endraw") continue;
      at_ = begin;
      line_ = begin_line;
      at_line_start_ = begins_line;
      emit_data(tag);
      return skip_raw_tag("endraw");
    }
    return invalid_argument("line {}: a raw block has no end", first_line);
  }

  absl::Status take_tag(Token::Kind begin, End end) {
    const int first_line = line_;
    emit(begin, "");
    skip_tag_begin();
    std::string open;  // the closing brackets that are due
    while (at_ < source_.size()) {
      skip_spaces();
      if (open.empty()) {
        Token last{
            begin == Token::Kind::kBlockBegin ? Token::Kind::kBlockEnd : Token::Kind::kVariableEnd,
            "",
            line_};
        if (skip_tag_end(end)) {
          tokens_.push_back(std::move(last));
          return absl::OkStatus();
        }
      }
      if (at_ < source_.size()) R1D_RETURN_IF_ERROR(take_token(&open));
    }
    return invalid_argument("line {}: a tag has no end", first_line);
  }

  absl::Status take_token(std::string* open) {
    const char c = rest()[0];
    if (c == '\'' || c == '"') return take_string();
    if (is_digit(c)) return take_number();
    if (is_name_start(c)) {
      size_t end = 1;
      while (end < rest().size() && is_name_part(rest()[end])) ++end;
      if (end > kMaxNameBytes) return fail("a name has more than {} bytes", kMaxNameBytes);
      take(Token::Kind::kName, end);
      return absl::OkStatus();
    }
    return take_operator(open);
  }

  void take(Token::Kind kind, size_t bytes) {
    emit(kind, std::string(rest().substr(0, bytes)));
    advance(bytes);
  }

  absl::Status take_string() {
    const char quote = rest()[0];
    size_t end = 1;
    while (end < rest().size() && rest()[end] != quote) end += rest()[end] == '\\' ? 2 : 1;
    if (end >= rest().size()) return fail("a string has no end");
    auto text = decode_string_literal(rest().substr(1, end - 1));
    if (!text.ok()) return fail("{}", message_of(text.status()));
    emit(Token::Kind::kString, *std::move(text));
    advance(end + 1);
    return absl::OkStatus();
  }

  // NOTE: "a.0.1" is two subscripts, not a float: behind a dot stands an integer.
  absl::Status take_number() {
    const std::string_view text = rest();
    const auto digits_from = [&](size_t at) {
      while (at < text.size() && (is_digit(text[at]) || text[at] == '_')) ++at;
      return at;
    };
    const bool behind_dot = at_ > 0 && source_[at_ - 1] == '.';
    const auto digit_at = [&](size_t at) { return at < text.size() && is_digit(text[at]); };
    size_t end = digits_from(1);
    bool is_float = false;
    if (!behind_dot && text.substr(end).starts_with('.') && digit_at(end + 1)) {
      is_float = true;
      end = digits_from(end + 1);
    }
    if (!behind_dot && end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
      const bool has_sign = end + 1 < text.size() && (text[end + 1] == '+' || text[end + 1] == '-');
      if (digit_at(end + (has_sign ? 2 : 1))) {
        is_float = true;
        end = digits_from(end + (has_sign ? 2 : 1));
      }
    }
    if (end < text.size() && is_name_part(text[end])) return fail("a number is not understood");
    std::string digits(text.substr(0, end));
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    emit(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, std::move(digits));
    advance(end);
    return absl::OkStatus();
  }

  absl::Status take_operator(std::string* open) {
    constexpr std::string_view kDoubles[] = {"//", "**", "==", "!=", ">=", "<="};
    constexpr std::string_view kSingles = "+-/*%~[](){}><=.:|,;";
    constexpr std::string_view kOpening = "([{";
    constexpr std::string_view kClosing = ")]}";
    for (const std::string_view pair : kDoubles) {
      if (!rest().starts_with(pair)) continue;
      take(Token::Kind::kOperator, 2);
      return absl::OkStatus();
    }
    const char c = rest()[0];
    if (kSingles.find(c) == std::string_view::npos) {
      size_t end = 0;
      take_code_point(rest(), &end);
      return fail("unexpected '{}'", rest().substr(0, end));
    }
    if (const size_t kind = kOpening.find(c); kind != std::string_view::npos) {
      open->push_back(kClosing[kind]);
    } else if (kClosing.find(c) != std::string_view::npos) {
      if (open->empty() || open->back() != c) return fail("unexpected '{}'", c);
      open->pop_back();
    }
    take(Token::Kind::kOperator, 1);
    return absl::OkStatus();
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace r1d::jinja
