// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

namespace r1d::telemetry {

// The values one label may take, known when the program is built. Whatever else a caller names
// counts as "other", so that no input can make a new series.
template <size_t N>
class LabelSet {
 public:
  static constexpr size_t kSize = N + 1;  // "other" is the last

  constexpr explicit LabelSet(const std::array<std::string_view, N>& values) : values_(values) {}

  [[nodiscard]] constexpr size_t index(std::string_view value) const {
    return static_cast<size_t>(std::find(values_.begin(), values_.end(), value) - values_.begin());
  }
  [[nodiscard]] constexpr std::string_view value(size_t index) const {
    return index < N ? values_[index] : "other";
  }

 private:
  std::array<std::string_view, N> values_;
};

}  // namespace r1d::telemetry
