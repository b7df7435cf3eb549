// SPDX-License-Identifier: Apache-2.0
#include "base/log_record.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include <fmt/format.h>

#include "r1d/base/text.h"

namespace r1d::base {
namespace {

// As log.level spells them; spdlog's own names differ.
std::string_view level_name(LogLevel level) {
  switch (level) {
    case LogLevel::trace:
      return "trace";
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warn:
      return "warn";
    default:
      return "error";
  }
}

std::string_view level_color(LogLevel level) {
  if (level >= LogLevel::err) return "\x1b[31m";
  if (level == LogLevel::warn) return "\x1b[33m";
  return level == LogLevel::info ? "\x1b[32m" : "\x1b[2m";
}

// `separator` stands between day and time of day; UTC.
void append_time(std::chrono::system_clock::time_point time, char separator, std::string& out) {
  using std::chrono::floor;
  const auto day = floor<std::chrono::days>(time);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss clock(floor<std::chrono::milliseconds>(time - day));
  fmt::format_to(std::back_inserter(out),
                 "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}.{:03}",
                 static_cast<int>(date.year()),
                 static_cast<unsigned>(date.month()),
                 static_cast<unsigned>(date.day()),
                 separator,
                 clock.hours().count(),
                 clock.minutes().count(),
                 clock.seconds().count(),
                 clock.subseconds().count());
}

// The code point of a valid character of two or three bytes; 0 for others.
uint32_t short_code_point(std::string_view character) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<uint8_t>(character[i]));
  };
  if (character.size() == 2) return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
  if (character.size() == 3) {
    return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  }
  return 0;
}

// C1 controls, line and paragraph separators, and what changes the direction of text: a terminal
// or a viewer might obey them.
bool is_unsafe(uint32_t code) {
  return (code >= 0x80 && code <= 0x9F) || code == 0x061C || code == 0x200E || code == 0x200F ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069) || code == 0xFEFF;
}

bool is_plain(char c) {
  return c >= ' ' && c <= '~' && c != '"' && c != '\\';
}

void append_ascii(char c, bool quoted, std::string& out) {
  if (c == '"' || c == '\\') {
    if (quoted) out += '\\';
    out += c;
  } else if (c == '\n') {
    out += "\\n";
  } else if (c == '\t') {
    out += "\\t";
  } else if (c == '\r') {
    out += "\\r";
  } else {
    fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
  }
}

// Not in quotes, `"` and `\` stay as they are.
void append_escaped(std::string_view text, bool quoted, std::string& out) {
  while (!text.empty()) {
    const auto end = std::find_if_not(text.begin(), text.end(), is_plain);
    out.append(text.begin(), end);
    text.remove_prefix(static_cast<size_t>(end - text.begin()));
    if (text.empty()) return;
    const Utf8Step step = utf8_step(text);
    const std::string_view character = text.substr(0, step.size);
    if (!step.valid) {
      out += "\xEF\xBF\xBD";
    } else if (step.size == 1) {
      append_ascii(text.front(), quoted, out);
    } else if (const uint32_t code = short_code_point(character); is_unsafe(code)) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", code);
    } else {
      out += character;
    }
    text.remove_prefix(step.size);
  }
}

void append_quoted(std::string_view text, std::string& out) {
  out += '"';
  append_escaped(text, /*quoted=*/true, out);
  out += '"';
}

void append_number(double value, std::string& out) {
  if (std::isfinite(value)) {
    fmt::format_to(std::back_inserter(out), "{}", value);
  } else {
    out += "null";  // JSON has no other word for it
  }
}

void append_value(const LogField::Value& value, std::string& out) {
  if (const auto* text = std::get_if<std::string_view>(&value)) {
    append_quoted(*text, out);
  } else if (const auto* integer = std::get_if<int64_t>(&value)) {
    fmt::format_to(std::back_inserter(out), "{}", *integer);
  } else if (const auto* number = std::get_if<double>(&value)) {
    append_number(*number, out);
  } else {
    out += std::get<bool>(value) ? "true" : "false";
  }
}

// Whether a value can stand without quotes.
bool is_word(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return is_plain(c) && c != ' ' && c != '=';
  });
}

void append_pair(std::string_view name, const LogField::Value& value, std::string& out) {
  out += ' ';
  out += name;
  out += '=';
  const auto* text = std::get_if<std::string_view>(&value);
  if (text != nullptr && is_word(*text)) {
    out += *text;
  } else {
    append_value(value, out);
  }
}

}  // namespace

void append_json(const LogRecord& record, std::string& out) {
  out += R"({"timestamp":")";
  append_time(record.time, 'T', out);
  out += R"(Z","level":")";
  out += level_name(record.level);
  out += R"(","stage":)";
  append_quoted(record.stage, out);
  out += R"(,"message":)";
  append_quoted(record.message, out);
  if (!record.trace_id.empty()) {
    out += R"(,"trace_id":)";
    append_quoted(record.trace_id, out);
  }
  if (!record.fields.empty()) {
    out += R"(,"context":)";
    char separator = '{';
    for (const LogField& field : record.fields) {
      out += separator;
      append_quoted(field.name, out);
      out += ':';
      append_value(field.value, out);
      separator = ',';
    }
    out += '}';
  }
  out += "}\n";
}

void append_text(const LogRecord& record, bool color, std::string& out) {
  append_time(record.time, ' ', out);
  fmt::format_to(std::back_inserter(out),
                 " {}{:<5}{} ",
                 color ? level_color(record.level) : "",
                 level_name(record.level),
                 color ? "\x1b[0m" : "");
  append_escaped(record.stage, /*quoted=*/false, out);
  out += ": ";
  append_words(record, out);
  out += '\n';
}

void append_words(const LogRecord& record, std::string& out) {
  append_escaped(record.message, /*quoted=*/false, out);
  for (const LogField& field : record.fields) append_pair(field.name, field.value, out);
  if (!record.trace_id.empty()) append_pair("trace_id", record.trace_id, out);
}

}  // namespace r1d::base
