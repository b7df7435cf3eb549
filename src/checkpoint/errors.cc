// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/errors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace r1d::checkpoint {

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string grouped(int64_t value) {
  std::string digits = std::to_string(value);
  const int64_t first_digit = value < 0 ? 1 : 0;
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > first_digit; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

}  // namespace r1d::checkpoint
