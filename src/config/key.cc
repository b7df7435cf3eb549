// SPDX-License-Identifier: Apache-2.0
// What a line of the schema can do: read a value, write it, describe itself.
#include <algorithm>
#include <cctype>
#include <type_traits>

#include "r1d/base/address.h"
#include "r1d/base/status.h"

#include "config/schema.h"
#include "config/values.h"

namespace r1d::config {
namespace {

template <typename T>
constexpr bool kIsNumber =
    std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t> || std::is_same_v<T, uint64_t> ||
    std::is_same_v<T, std::chrono::milliseconds>;

std::string join(const std::vector<std::string_view>& words) {
  std::string text;
  for (const std::string_view word : words) {
    text += text.empty() ? "" : ", ";
    text += word;
  }
  return text;
}

absl::StatusOr<int64_t> parse_number(Type type, std::string_view text) {
  if (type == Type::kDuration) return parse_duration(text);
  if (type == Type::kBytes) return parse_bytes(text);
  return parse_integer(text);
}

std::string format_number(Type type, int64_t value) {
  if (type == Type::kDuration) return format_duration(value);
  if (type == Type::kBytes) return format_bytes(value);
  return std::to_string(value);
}

bool offers(const Key& key, std::string_view text) {
  return std::find(key.choices.begin(), key.choices.end(), text) != key.choices.end();
}

absl::StatusOr<int64_t> read_number(const Key& key, std::string_view text) {
  R1D_ASSIGN_OR_RETURN(const int64_t value, parse_number(key.type, text));
  const bool allowed = key.choices.empty() ? value >= key.min && value <= key.max
                                           : offers(key, format_number(key.type, value));
  if (!allowed) {
    return invalid_argument("expected {}{}", key.choices.size() > 1 ? "one of " : "", key.range());
  }
  return value;
}

absl::StatusOr<std::string> read_string(const Key& key, std::string_view text) {
  // A control character in a path or a name is a slip, and would let a value forge a log line.
  if (std::any_of(
          text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; })) {
    return invalid_argument("expected a text without control characters");
  }
  if (key.type == Type::kChoice && !offers(key, text)) {
    return invalid_argument(
        "expected {}{}", key.choices.size() > 1 ? "one of " : "", join(key.choices));
  }
  if (key.type == Type::kAddress) R1D_RETURN_IF_ERROR(base::parse_address(text).status());
  return std::string(text);
}

absl::Status store(const Key& key, std::string_view text, std::string& field) {
  R1D_ASSIGN_OR_RETURN(field, read_string(key, text));
  return absl::OkStatus();
}

absl::Status store(const Key& /*key*/, std::string_view text, bool& field) {
  R1D_ASSIGN_OR_RETURN(field, parse_boolean(text));
  return absl::OkStatus();
}

template <typename T>
requires kIsNumber<T> absl::Status store(const Key& key, std::string_view text, T& field) {
  R1D_ASSIGN_OR_RETURN(const int64_t value, read_number(key, text));
  field = static_cast<T>(value);  // the range of the key fits the field; a test holds it to that
  return absl::OkStatus();
}

std::string show(const Key& /*key*/, const std::string& field) {
  return field;
}
std::string show(const Key& /*key*/, bool field) {
  return field ? "true" : "false";
}
std::string show(const Key& key, std::chrono::milliseconds field) {
  return format_number(key.type, field.count());
}
template <typename T>
requires kIsNumber<T> std::string show(const Key& key, T field) {
  return format_number(key.type, static_cast<int64_t>(field));
}

// "engine.world_size" -> "R1D_ENGINE__WORLD_SIZE"
std::string variable_of(std::string_view name) {
  if (name.empty()) return "";
  std::string text = "R1D_";
  for (const char c : name) {
    if (c == '.') {
      text += "__";
    } else {
      text += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
  }
  return text;
}

}  // namespace

std::string Key::environment() const {
  return variable_of(name);
}

std::string Key::alias_environment() const {
  return variable_of(alias);
}

std::string Key::alias_flag() const {
  if (alias.empty()) return "";
  std::string text = "--" + std::string(alias.substr(alias.find('.') + 1));
  std::replace(text.begin(), text.end(), '_', '-');
  return text;
}

std::string_view Key::type_name() const {
  switch (type) {
    case Type::kString:
      return "string";
    case Type::kChoice:
      return "choice";
    case Type::kAddress:
      return "address";
    case Type::kBoolean:
      return "boolean";
    case Type::kInteger:
      return "integer";
    case Type::kDuration:
      return "duration";
    case Type::kBytes:
      return "bytes";
  }
  return "";
}

std::string Key::range() const {
  if (type == Type::kAddress) return "host:port or [IPv6]:port";
  if (type == Type::kBoolean) return "true, false";
  if (type == Type::kString) return "";
  const std::string values =
      choices.empty() ? fmt::format("{} to {}", format_number(type, min), format_number(type, max))
                      : join(choices);
  return unit.empty() ? values : fmt::format("{} {}", values, unit);
}

absl::Status set_value(const Key& key, std::string_view text, Config& config) {
  const absl::Status status =
      std::visit([&](auto field) { return store(key, text, field(config)); }, key.field);
  if (status.ok()) return status;
  return invalid_argument("{}: {}, found {}", key.name, message_of(status), quote(text));
}

std::string get_value(const Key& key, const Config& config) {
  // The accessors give a reference to write through; a copy keeps `config` const.
  Config copy = config;
  return std::visit([&](auto field) { return show(key, field(copy)); }, key.field);
}

}  // namespace r1d::config
