// SPDX-License-Identifier: Apache-2.0
// Python's string functions on Text. Pieces keep the origin that they had; all charge the meter.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "jinja/unicode.h"
#include "jinja/value.h"

namespace r1d::jinja {

// `max_splits` below zero is no limit.
[[nodiscard]] absl::StatusOr<Value> split_at(Meter& meter,
                                             const Text& text,
                                             std::string_view separator,
                                             int64_t max_splits);
[[nodiscard]] absl::StatusOr<Value> split_at_end(Meter& meter,
                                                 const Text& text,
                                                 std::string_view separator,
                                                 int64_t max_splits);
[[nodiscard]] absl::StatusOr<Value> split_at_spaces(Meter& meter,
                                                    const Text& text,
                                                    int64_t max_splits);
// The lines without their ends.
[[nodiscard]] absl::StatusOr<std::vector<Text>> lines_of(Meter& meter, const Text& text);

// `chars` undefined or None: white space.
[[nodiscard]] absl::StatusOr<Value> strip(Meter& meter,
                                          const Text& text,
                                          const Value& chars,
                                          StripSides sides);
// `count` below zero replaces all.
[[nodiscard]] absl::StatusOr<Value> replace(
    Meter& meter, const Text& text, const Text& from, const Text& to, int64_t count);

enum class Case { kUpper, kLower, kCapitalized };
// ASCII letters change, scripts without case stay. kInvalidArgument for other letters that may have
// case: Python's answer for them is not known here, and a wrong one would go unnoticed.
[[nodiscard]] absl::StatusOr<Value> with_case(Meter& meter, const Text& text, Case wanted);

[[nodiscard]] absl::StatusOr<Value> join(Meter& meter,
                                         const Text& separator,
                                         const std::vector<Value>& items);

}  // namespace r1d::jinja
