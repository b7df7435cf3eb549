// SPDX-License-Identifier: Apache-2.0
// Variables from JSON.
#pragma once

#include <string>
#include <string_view>

#include <absl/status/statusor.h>

#include "jinja/value.h"

namespace r1d::jinja {

// Borrows its arguments. Errors name the JSON pointer of the value.
class JsonReader {
 public:
  // All text is `trusted` or not; `marked` (may be null) replaces single strings.
  JsonReader(Meter& meter, bool trusted, const MarkedTexts* marked)
      : meter_(meter), trusted_(trusted), marked_(marked) {}

  // The value of a variable. kInvalidArgument: text that is not UTF-8, integers beyond 64 bits.
  [[nodiscard]] absl::StatusOr<Value> read(const std::string& name, const Json& json);

 private:
  absl::StatusOr<Value> read_value(const Json& json);
  absl::StatusOr<Value> read_integer(const Json& json);
  absl::StatusOr<Value> read_text(const std::string& bytes);
  absl::StatusOr<Value> read_list(const Json& json);
  absl::StatusOr<Value> read_dict(const Json& json);
  absl::StatusOr<Value> read_child(std::string_view name, const Json& json);

  Meter& meter_;
  bool trusted_;
  const MarkedTexts* marked_;
  std::string path_;  // of the value being read
};

}  // namespace r1d::jinja
