// SPDX-License-Identifier: Apache-2.0
// Values as text: what {{ }} prints (Python's str) and what tojson writes (Python's json.dumps).
#pragma once

#include <optional>
#include <string>

#include <absl/status/statusor.h>

#include "jinja/value.h"

namespace r1d::jinja {

// Strings as they are; the text of lists and dicts counts as data as soon as one string in them
// does. Numbers, booleans and None have no origin and count as trusted: their spelling holds no
// markup.
[[nodiscard]] absl::StatusOr<TextPtr> to_text(Meter& meter, const Value& value);

struct JsonStyle {
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  std::optional<std::string> indent;  // one level's; items then stand on lines of their own
  bool ensure_ascii = false;
  bool sort_keys = false;
};

// All of it is data if any string in it is.
[[nodiscard]] absl::StatusOr<Text> to_json(Meter& meter,
                                           const Value& value,
                                           const JsonStyle& style);

// Python's repr of a float.
[[nodiscard]] std::string float_text(double value);

}  // namespace r1d::jinja
