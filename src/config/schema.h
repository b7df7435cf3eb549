// SPDX-License-Identifier: Apache-2.0
// The table of every key. Adding a setting is a field in r1d/config/config.h and a line in
// schema.cc; parsing, flags, environment, --print-config and the reference follow from it.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <absl/status/status.h>

#include "r1d/config/config.h"

namespace r1d::config {

enum class Type : uint8_t { kString, kChoice, kAddress, kBoolean, kInteger, kDuration, kBytes };

// The field of Config that a key stands for.
using FieldRef = std::variant<std::string& (*)(Config&),
                              bool& (*)(Config&),
                              int32_t& (*)(Config&),
                              int64_t& (*)(Config&),
                              uint64_t& (*)(Config&),
                              std::chrono::milliseconds& (*)(Config&)>;

struct Key {
  std::string_view name;  // "engine.world_size"
  std::string_view flag;  // "--world-size"
  Type type = Type::kString;
  FieldRef field;
  // Integers, durations (in ms) and bytes: both ends are allowed.
  int64_t min = 0;
  int64_t max = 0;
  // A choice takes one of these; an integer that has some takes one of them too.
  std::vector<std::string_view> choices;
  std::string_view help;
  std::string_view unit;      // what an integer counts: "tokens"
  std::string_view alias;     // a second name, "scheduler.max_tokens"; flag and variable follow it
  std::string_view variable;  // a name from outside, "MODEL_PATH"; empty there means not given
  // May change while the daemon runs; src/cli applies it. No check of checks.cc may depend on it.
  bool live = false;

  [[nodiscard]] std::string_view section() const { return name.substr(0, name.find('.')); }
  [[nodiscard]] std::string_view last_part() const { return name.substr(name.find('.') + 1); }
  [[nodiscard]] std::string environment() const;  // "R1D_ENGINE__WORLD_SIZE"
  [[nodiscard]] std::string alias_environment() const;
  [[nodiscard]] std::string alias_flag() const;
  [[nodiscard]] std::string_view type_name() const;
  // "1 to 4096 tokens", "text, json"; empty when all is allowed.
  [[nodiscard]] std::string range() const;
};

// Every key, those of a section together, in the order of the reference.
[[nodiscard]] std::span<const Key> schema();

// Where in schema() it stands.
[[nodiscard]] size_t index_of(const Key& key);

// By name or alias; null when unknown.
[[nodiscard]] const Key* find_key(std::string_view name);
[[nodiscard]] bool is_section(std::string_view name);

// Parses `text` into the key's field. The error names key, expected and found.
[[nodiscard]] absl::Status set_value(const Key& key, std::string_view text, Config& config);

// The field's value as text that set_value reads back.
[[nodiscard]] std::string get_value(const Key& key, const Config& config);

}  // namespace r1d::config
