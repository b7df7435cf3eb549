// SPDX-License-Identifier: Apache-2.0
// Text to value and back, for the kinds of values a key may have. Errors begin with "expected" and
// leave naming the key to the caller.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace r1d::config {

// "64", "-1".
[[nodiscard]] absl::StatusOr<int64_t> parse_integer(std::string_view text);

// "10ms", "2s", "5m", "1h"; a plain number is milliseconds. Gives milliseconds.
[[nodiscard]] absl::StatusOr<int64_t> parse_duration(std::string_view text);

// "4096", "16Gi" (2^30), "16G" (10^9); suffixes K M G Ki Mi Gi.
[[nodiscard]] absl::StatusOr<int64_t> parse_bytes(std::string_view text);

[[nodiscard]] absl::StatusOr<bool> parse_boolean(std::string_view text);

// In the largest unit that divides the value: 600000 -> "10m", 4194304 -> "4Mi".
[[nodiscard]] std::string format_duration(int64_t milliseconds);
[[nodiscard]] std::string format_bytes(int64_t bytes);

// In double quotes, with the rest escaped and a long text cut: safe inside a one-line message.
[[nodiscard]] std::string quote(std::string_view text);

}  // namespace r1d::config
