// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/text.h"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

namespace r1d {
namespace {

uint8_t byte_at(std::string_view text, size_t index) {
  return static_cast<uint8_t>(text[index]);
}

// The bytes that may follow a first byte, and how many characters' bytes there are in all.
struct Lead {
  size_t size = 0;  // 0: no character begins so
  uint8_t second_min = 0x80;
  uint8_t second_max = 0xBF;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {.size = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.size = 2};
  if (byte == 0xE0) return {.size = 3, .second_min = 0xA0};  // no overlong forms
  if (byte == 0xED) return {.size = 3, .second_max = 0x9F};  // no surrogates
  if (byte < 0xF0) return {.size = 3};
  if (byte == 0xF0) return {.size = 4, .second_min = 0x90};
  if (byte == 0xF4) return {.size = 4, .second_max = 0x8F};  // up to U+10FFFF
  return byte < 0xF4 ? Lead{.size = 4} : Lead{};
}

}  // namespace

std::string printable(std::string_view text, size_t max_chars) {
  std::string line(text.substr(0, max_chars));
  for (char& c : line) {
    if (c < 0x20 || c > 0x7E) c = '?';  // a signed char: bytes from 0x80 are below 0x20
  }
  if (text.size() > max_chars) line += "...";
  return line;
}

absl::Status with_context(const absl::Status& status, std::string_view context) {
  const absl::string_view message = status.message();
  return absl::Status(
      status.code(),
      fmt::format("{}: {}", context, std::string_view(message.data(), message.size())));
}

Utf8Step utf8_step(std::string_view text) {
  const Lead lead = lead_of(byte_at(text, 0));
  if (lead.size <= 1) return {.size = 1, .valid = lead.size == 1, .truncated = false};
  for (size_t i = 1; i < lead.size; ++i) {
    if (i == text.size()) return {.size = i, .valid = false, .truncated = true};
    const uint8_t byte = byte_at(text, i);
    const bool fits =
        i == 1 ? byte >= lead.second_min && byte <= lead.second_max : (byte & 0xC0) == 0x80;
    if (!fits) return {.size = i, .valid = false, .truncated = false};
  }
  return {.size = lead.size, .valid = true, .truncated = false};
}

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text.substr(at));
    if (!step.valid) return at;
    at += step.size;
  }
  return std::nullopt;
}

void append_as_utf8(std::string_view bytes, std::string& out) {
  while (!bytes.empty()) {
    const size_t num_valid =
        std::min(find_invalid_utf8(bytes).value_or(bytes.size()), bytes.size());
    out.append(bytes.substr(0, num_valid));
    bytes.remove_prefix(num_valid);
    if (bytes.empty()) return;
    out += "\xEF\xBF\xBD";
    bytes.remove_prefix(utf8_step(bytes).size);
  }
}

}  // namespace r1d
