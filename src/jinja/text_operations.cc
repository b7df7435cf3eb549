// SPDX-License-Identifier: Apache-2.0
#include "jinja/text_operations.h"

#include <algorithm>
#include <string>
#include <utility>

#include "r1d/base/status.h"

#include "jinja/printing.h"

namespace r1d::jinja {
namespace {

// Collects the pieces of a split; each is charged as it is made.
class Pieces {
 public:
  Pieces(Meter& meter, const Text& text) : meter_(meter), text_(text) {}

  absl::Status add(size_t begin, size_t end) {
    R1D_ASSIGN_OR_RETURN(Value piece, make_text(meter_, text_.slice(begin, end)));
    items_.push_back(std::move(piece));
    return absl::OkStatus();
  }
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(items_.size()); }
  void reverse() { std::reverse(items_.begin(), items_.end()); }
  absl::StatusOr<Value> take() && { return make_list(meter_, std::move(items_), false); }

 private:
  Meter& meter_;
  const Text& text_;
  std::vector<Value> items_;
};

// Moves `at` over code points that are white space, or are not.
void skip_while(std::string_view text, bool space, size_t* at) {
  while (*at < text.size()) {
    size_t next = *at;
    if (is_space(take_code_point(text, &next)) != space) return;
    *at = next;
  }
}

// Blocks of scripts, signs and symbols in which no letter has case.
bool is_caseless(char32_t code_point) {
  struct Block {
    char32_t first, last;
  };
  constexpr Block kCaseless[] = {{0x80, 0xA9},
                                 {0x590, 0x109F},
                                 {0x2000, 0x20FF},
                                 {0x2E80, 0xA63F},
                                 {0xAC00, 0xFAFF},
                                 {0xFE00, 0xFF20},
                                 {0xFF5B, 0xFFFF},
                                 {0x1F000, 0x10FFFF}};
  return std::any_of(std::begin(kCaseless), std::end(kCaseless), [&](const Block& block) {
    return code_point >= block.first && code_point <= block.last;
  });
}

absl::Status check_case_is_known(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const char32_t code_point = take_code_point(text, &at);
    if (code_point < 0x80 || is_caseless(code_point)) continue;
    return invalid_argument("upper and lower case of U+{:04X} are not supported",
                            static_cast<uint32_t>(code_point));
  }
  return absl::OkStatus();
}

char to_upper(char c) {
  return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}
char to_lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

}  // namespace

absl::StatusOr<Value> split_at(Meter& meter,
                               const Text& text,
                               std::string_view separator,
                               int64_t max_splits) {
  if (separator.empty()) return invalid_argument("split: the separator is empty");
  R1D_RETURN_IF_ERROR(meter.scan(text.size()));
  Pieces pieces(meter, text);
  size_t begin = 0;
  while (max_splits < 0 || pieces.size() < max_splits) {
    const size_t found = find_bytes(text.bytes(), separator, begin);
    if (found == std::string_view::npos) break;
    R1D_RETURN_IF_ERROR(pieces.add(begin, found));
    begin = found + separator.size();
  }
  R1D_RETURN_IF_ERROR(pieces.add(begin, text.size()));
  return std::move(pieces).take();
}

absl::StatusOr<Value> split_at_end(Meter& meter,
                                   const Text& text,
                                   std::string_view separator,
                                   int64_t max_splits) {
  if (separator.empty()) return invalid_argument("rsplit: the separator is empty");
  // Searching from the end by reversed copies keeps the linear search.
  R1D_RETURN_IF_ERROR(meter.make(text.size() + separator.size()));
  const std::string backwards(text.bytes().rbegin(), text.bytes().rend());
  const std::string wanted(separator.rbegin(), separator.rend());
  Pieces pieces(meter, text);
  size_t begin = 0;  // in the reversed text
  while (max_splits < 0 || pieces.size() < max_splits) {
    const size_t found = find_bytes(backwards, wanted, begin);
    if (found == std::string_view::npos) break;
    R1D_RETURN_IF_ERROR(pieces.add(text.size() - found, text.size() - begin));
    begin = found + wanted.size();
  }
  R1D_RETURN_IF_ERROR(pieces.add(0, text.size() - begin));
  pieces.reverse();
  return std::move(pieces).take();
}

absl::StatusOr<Value> split_at_spaces(Meter& meter, const Text& text, int64_t max_splits) {
  R1D_RETURN_IF_ERROR(meter.scan(text.size()));
  Pieces pieces(meter, text);
  size_t at = 0;
  skip_while(text.bytes(), true, &at);
  while (at < text.size()) {
    const size_t begin = at;
    if (max_splits >= 0 && pieces.size() == max_splits) {
      R1D_RETURN_IF_ERROR(pieces.add(begin, text.size()));
      break;
    }
    skip_while(text.bytes(), false, &at);
    R1D_RETURN_IF_ERROR(pieces.add(begin, at));
    skip_while(text.bytes(), true, &at);
  }
  return std::move(pieces).take();
}

absl::StatusOr<std::vector<Text>> lines_of(Meter& meter, const Text& text) {
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t code_point = take_code_point(text.bytes(), &at);
    if (!is_line_break(code_point)) continue;
    if (code_point == '\r' && at < text.size() && text.bytes()[at] == '\n') ++at;
    R1D_RETURN_IF_ERROR(meter.make(sizeof(Text) + end - begin));
    lines.push_back(text.slice(begin, end));
    begin = at;
  }
  R1D_RETURN_IF_ERROR(meter.make(sizeof(Text) + text.size() - begin));
  if (begin < text.size()) lines.push_back(text.slice(begin, text.size()));
  return lines;
}

absl::StatusOr<Value> strip(Meter& meter, const Text& text, const Value& chars, StripSides sides) {
  R1D_RETURN_IF_ERROR(meter.scan(text.size()));
  ByteRange kept;
  if (const Text* set = chars.text()) {
    // Each character is looked up in the set.
    R1D_RETURN_IF_ERROR(meter.step(static_cast<int64_t>(set->size() / 64 * text.size())));
    const std::string_view view = set->bytes();
    kept = stripped(text.bytes(), &view, sides);
  } else if (chars.is_undefined() || chars.is<None>()) {
    kept = stripped(text.bytes(), nullptr, sides);
  } else {
    return invalid_argument("strip: the characters are a '{}'", type_name(chars));
  }
  return make_text(meter, text.slice(kept.begin, kept.end));
}

absl::StatusOr<Value> replace(
    Meter& meter, const Text& text, const Text& from, const Text& to, int64_t count) {
  if (from.empty()) return invalid_argument("replace: the text to look for is empty");
  R1D_RETURN_IF_ERROR(meter.scan(text.size()));
  Text result;
  size_t begin = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t found = find_bytes(text.bytes(), from.bytes(), begin);
    if (found == std::string_view::npos) break;
    R1D_RETURN_IF_ERROR(meter.make(found - begin + to.footprint()));
    result.append(text.slice(begin, found));
    result.append(to);
    begin = found + from.size();
  }
  R1D_RETURN_IF_ERROR(meter.make(text.size() - begin));
  result.append(text.slice(begin, text.size()));
  return make_text(meter, std::move(result));
}

absl::StatusOr<Value> with_case(Meter& meter, const Text& text, Case wanted) {
  R1D_RETURN_IF_ERROR(meter.make(text.footprint()));
  R1D_RETURN_IF_ERROR(check_case_is_known(text.bytes()));
  Text result;
  for (Segment& segment : text.segments()) {
    const bool is_start = result.empty();
    for (char& c : segment.text) c = wanted == Case::kUpper ? to_upper(c) : to_lower(c);
    if (wanted == Case::kCapitalized && is_start) segment.text[0] = to_upper(segment.text[0]);
    result.append(segment.text, segment.trusted);
  }
  return make_text(meter, std::move(result));
}

absl::StatusOr<Value> join(Meter& meter, const Text& separator, const std::vector<Value>& items) {
  Text result;
  for (size_t i = 0; i < items.size(); ++i) {
    R1D_ASSIGN_OR_RETURN(const TextPtr piece, to_text(meter, items[i]));
    R1D_RETURN_IF_ERROR(meter.make(separator.footprint() + piece->footprint()));
    R1D_RETURN_IF_ERROR(meter.step());
    if (i > 0) result.append(separator);
    result.append(*piece);
  }
  return make_text(meter, std::move(result));
}

}  // namespace r1d::jinja
