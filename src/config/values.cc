// SPDX-License-Identifier: Apache-2.0
#include "config/values.h"

#include <array>
#include <charconv>
#include <limits>
#include <span>

#include "r1d/base/status.h"

namespace r1d::config {
namespace {

struct Unit {
  std::string_view suffix;
  int64_t factor;
};

// Largest first, as format_* tries them in turn.
constexpr std::array<Unit, 4> kDurations{{{"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}}};
constexpr std::array<Unit, 4> kBinaryBytes{
    {{"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"", 1}}};
constexpr std::array<Unit, 7> kBytes{{{"Gi", 1 << 30},
                                      {"Mi", 1 << 20},
                                      {"Ki", 1 << 10},
                                      {"G", 1000000000},
                                      {"M", 1000000},
                                      {"K", 1000},
                                      {"", 1}}};

// Splits "16Gi" into 16 and "Gi"; false when there is no number or it does not fit.
bool split_number(std::string_view text, int64_t& number, std::string_view& suffix) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc()) return false;
  suffix = std::string_view(stop, static_cast<size_t>(end - stop));
  return true;
}

// number * factor, or false when that does not fit.
bool scale(int64_t number, int64_t factor, int64_t& out) {
  return !__builtin_mul_overflow(number, factor, &out);
}

bool parse_with_units(std::string_view text, std::span<const Unit> units, int64_t& out) {
  int64_t number = 0;
  std::string_view suffix;
  if (!split_number(text, number, suffix)) return false;
  for (const Unit& unit : units) {
    if (suffix == unit.suffix) return scale(number, unit.factor, out);
  }
  return false;
}

std::string format_with_units(int64_t value, std::span<const Unit> units) {
  for (const Unit& unit : units) {
    if (value != 0 && value % unit.factor == 0) {
      return fmt::format("{}{}", value / unit.factor, unit.suffix);
    }
  }
  return fmt::format("{}{}", value, units.back().suffix);
}

}  // namespace

absl::StatusOr<int64_t> parse_integer(std::string_view text) {
  int64_t number = 0;
  std::string_view rest;
  if (!split_number(text, number, rest) || !rest.empty()) {
    return invalid_argument("expected a whole number");
  }
  return number;
}

absl::StatusOr<int64_t> parse_duration(std::string_view text) {
  int64_t milliseconds = 0;
  // A plain number is milliseconds: "" has the place of "ms".
  const std::string with_unit = std::string(text) + "ms";
  if (parse_with_units(text, kDurations, milliseconds)) return milliseconds;
  if (parse_with_units(with_unit, kDurations, milliseconds)) return milliseconds;
  return invalid_argument("expected a duration such as 10ms, 2s, 5m or 1h");
}

absl::StatusOr<int64_t> parse_bytes(std::string_view text) {
  int64_t bytes = 0;
  if (parse_with_units(text, kBytes, bytes)) return bytes;
  return invalid_argument("expected a number of bytes such as 4096, 512Mi or 16G");
}

absl::StatusOr<bool> parse_boolean(std::string_view text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return invalid_argument("expected true or false");
}

std::string format_duration(int64_t milliseconds) {
  return format_with_units(milliseconds, kDurations);
}

std::string format_bytes(int64_t bytes) {
  return format_with_units(bytes, kBinaryBytes);
}

std::string quote(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string out = "\"";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + (text.size() > kLongest ? "\"..." : "\"");
}

}  // namespace r1d::config
