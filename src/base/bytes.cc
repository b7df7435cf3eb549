// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/bytes.h"

#include <cstddef>

#include <fmt/format.h>

namespace r1d {

std::string readable_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  const double size = value < 0 ? -value : value;
  // The bounds are where rounding to two digits would print a thousand.
  if (size >= 999.995e6) return fmt::format("{:.2f} GB", value / 1e9);
  if (size >= 999.995e3) return fmt::format("{:.2f} MB", value / 1e6);
  if (size >= 1000) return fmt::format("{:.2f} kB", value / 1e3);
  return fmt::format("{} B", bytes);
}

std::string readable_count(int64_t count) {
  std::string digits = fmt::format("{}", count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

}  // namespace r1d
