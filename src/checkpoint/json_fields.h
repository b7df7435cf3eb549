// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/status.h>

#include "checkpoint/json.h"

namespace r1d::checkpoint {

enum class Presence : uint8_t {
  kRequired,  // absent or null is an error
  kOptional,  // absent or null leaves the target as it is
};

// Reads fields of one JSON object into variables. The first error is kept and later reads are
// skipped, so a caller lists its fields and looks at status() once.
// Borrows the object for its life.
class JsonFields {
 public:
  // `path` goes before each name in error texts, as in "rope_scaling.".
  explicit JsonFields(const Json& object, std::string path = "");

  [[nodiscard]] const absl::Status& status() const { return status_; }
  // Keeps `status` when it is an error and the first one.
  void fail(const absl::Status& status);

  // The value, or nullptr when absent or null.
  [[nodiscard]] const Json* find(const char* name) const;
  // The same, which must be an object: anything else fails and gives nullptr.
  [[nodiscard]] const Json* find_object(const char* name);

  template <std::integral T>
  void integer(const char* name, T& target, int64_t min, int64_t max, Presence presence) {
    target = static_cast<T>(read_integer(name, target, min, max, presence));
  }

  // Integers are taken too: the same field is 40 in one file and 40.0 in another.
  void number(const char* name, double& target, double min, double max, Presence presence);
  void boolean(const char* name, bool& target, Presence presence);
  void text(const char* name, std::string& target, Presence presence);

  // A field with one value that r1d implements: absent, null or that value.
  void only(const char* name, const Json& supported);

  // "name: expected WHAT, found VALUE" or "name: missing, expected WHAT".
  void fail_expected(const char* name, std::string_view what);

 private:
  int64_t read_integer(
      const char* name, int64_t fallback, int64_t min, int64_t max, Presence presence);
  // The value to read, or nullptr; an absent required one fails.
  const Json* value_of(const char* name, std::string_view what, Presence presence);

  const Json& object_;
  std::string path_;
  absl::Status status_;
};

// The integer that `value` is, when it is one from `min` to `max`.
[[nodiscard]] std::optional<int64_t> integer_in(const Json& value, int64_t min, int64_t max);

}  // namespace r1d::checkpoint
