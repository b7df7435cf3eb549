// SPDX-License-Identifier: Apache-2.0
#include "jinja/string_literal.h"

#include <charconv>

#include "r1d/base/status.h"

#include "jinja/unicode.h"

namespace r1d::jinja {
namespace {

// Reads exactly `num_digits` hexadecimal digits at *at.
absl::StatusOr<char32_t> take_hex(std::string_view body, size_t num_digits, size_t* at) {
  uint32_t value = 0;
  const std::string_view digits = body.substr(*at, num_digits);
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (digits.size() != num_digits || parsed.ptr != digits.data() + digits.size()) {
    return invalid_argument("a string has an escape without its {} hexadecimal digits", num_digits);
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
    return invalid_argument("a string has an escape for U+{:X}, which is no character", value);
  }
  *at += num_digits;
  return static_cast<char32_t>(value);
}

char32_t take_octal(std::string_view body, size_t* at) {
  char32_t value = 0;
  for (int i = 0; i < 3 && *at < body.size() && body[*at] >= '0' && body[*at] <= '7'; ++i) {
    value = value * 8 + static_cast<char32_t>(body[(*at)++] - '0');
  }
  return value;
}

// Appends what the escape behind a backslash, at *at, stands for.
absl::Status append_escape(std::string_view body, size_t* at, std::string* out) {
  constexpr std::string_view kLetters = "ntrabfv\\'\"";
  constexpr std::string_view kMeanings = "\n\t\r\a\b\f\v\\'\"";
  const char kind = body[*at];
  if (const size_t known = kLetters.find(kind); known != std::string_view::npos) {
    *out += kMeanings[known];
    ++*at;
    return absl::OkStatus();
  }
  if (kind >= '0' && kind <= '7') {
    append_code_point(out, take_octal(body, at));
    return absl::OkStatus();
  }
  ++*at;
  if (kind == '\n') return absl::OkStatus();  // the line goes on
  if (kind == 'N') return invalid_argument("\\N{{...}} in a string is not supported");
  if (kind != 'x' && kind != 'u' && kind != 'U') {
    *out += '\\';
    *out += kind;
    return absl::OkStatus();
  }
  const size_t num_digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
  R1D_ASSIGN_OR_RETURN(const char32_t code_point, take_hex(body, num_digits, at));
  append_code_point(out, code_point);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> decode_string_literal(std::string_view body) {
  std::string out;
  for (size_t at = 0; at < body.size();) {
    if (body[at] != '\\') {
      out += body[at++];
      continue;
    }
    ++at;  // the lexer lets no backslash stand last
    R1D_RETURN_IF_ERROR(append_escape(body, &at, &out));
  }
  return out;
}

}  // namespace r1d::jinja
