// SPDX-License-Identifier: Apache-2.0
#include "jinja/unicode.h"

#include <array>
#include <cstdint>
#include <cstring>

namespace r1d::jinja {
namespace {

bool is_continuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

// Bytes of the sequence that `lead` begins; 0 where none can begin.
size_t sequence_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

bool is_stripped(std::string_view text, size_t at, const std::string_view* chars) {
  const size_t begin = at;
  const char32_t code_point = take_code_point(text, &at);
  if (chars == nullptr) return is_space(code_point);
  return chars->find(text.substr(begin, at - begin)) != std::string_view::npos;
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  constexpr std::array<char32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
  for (size_t at = 0; at < text.size();) {
    const size_t length = sequence_length(static_cast<uint8_t>(text[at]));
    if (length == 0 || at + length > text.size()) return false;
    for (size_t i = 1; i < length; ++i) {
      if (!is_continuation(text[at + i])) return false;
    }
    const char32_t code_point = take_code_point(text, &at);
    const bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
    if (code_point < kSmallest[length] || surrogate || code_point > 0x10FFFF) return false;
  }
  return true;
}

char32_t take_code_point(std::string_view text, size_t* at) {
  constexpr std::array<uint8_t, 5> kLeadBits = {0, 0x7F, 0x1F, 0x0F, 0x07};
  const auto lead = static_cast<uint8_t>(text[*at]);
  const size_t length = sequence_length(lead);
  char32_t code_point = lead & kLeadBits[length];
  for (size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (static_cast<uint8_t>(text[*at + i]) & 0x3F);
  }
  *at += length;
  return code_point;
}

void append_code_point(std::string* out, char32_t code_point) {
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((code_point >> shift) & 0x3F)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code_point >> 6)));
    tail(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code_point >> 12)));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | (code_point >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

size_t count_code_points(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += is_continuation(byte) ? 0 : 1;
  return count;
}

size_t offset_of(std::string_view text, size_t index) {
  size_t at = 0;
  for (; at < text.size() && index > 0; --index) {
    at += sequence_length(static_cast<uint8_t>(text[at]));
  }
  return at;
}

bool is_space(char32_t code_point) {
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (code_point >= 0x09 && code_point <= 0x0D) ||
             (code_point >= 0x1C && code_point <= 0x1F) ||
             (code_point >= 0x2000 && code_point <= 0x200A);
  }
}

bool is_line_break(char32_t code_point) {
  return (code_point >= 0x0A && code_point <= 0x0D) || (code_point >= 0x1C && code_point <= 0x1E) ||
         code_point == 0x85 || code_point == 0x2028 || code_point == 0x2029;
}

ByteRange stripped(std::string_view text, const std::string_view* chars, StripSides sides) {
  ByteRange kept{0, text.size()};
  while (sides.left && kept.begin < kept.end && is_stripped(text, kept.begin, chars)) {
    kept.begin += sequence_length(static_cast<uint8_t>(text[kept.begin]));
  }
  while (sides.right && kept.begin < kept.end) {
    size_t last = kept.end - 1;
    while (is_continuation(text[last])) --last;
    if (!is_stripped(text, last, chars)) break;
    kept.end = last;
  }
  return kept;
}

size_t find_bytes(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

}  // namespace r1d::jinja
