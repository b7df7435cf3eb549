// SPDX-License-Identifier: Apache-2.0
// Numbers and durations as people write and read them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace r1d::cli::bench {

[[nodiscard]] std::vector<std::string> split(std::string_view text, char separator);

// A finite number, the whole text of it.
[[nodiscard]] std::optional<double> parse_number(const std::string& text);

// "500ms", "1.5s", "2m", "1h", "250us" -> seconds, above 0. None for anything else: a unit is due.
[[nodiscard]] std::optional<double> parse_seconds(const std::string& text);

// 0.0123 -> "12.3 ms": three digits and the unit that suits.
[[nodiscard]] std::string format_seconds(double seconds);
// 12345.6 -> "12,346"; 12.34 -> "12.3".
[[nodiscard]] std::string format_number(double value);

}  // namespace r1d::cli::bench
