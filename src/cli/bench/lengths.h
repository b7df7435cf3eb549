// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace r1d::cli::bench {

// Of a request, in or out.
inline constexpr int32_t kMostTokens = 1 << 20;

// How many tokens each request has: a number, or a draw that depends on (seed, counter) alone.
class Lengths {
 public:
  // "128" | "uniform:LOW:HIGH" (both included) | "lognormal:MEDIAN:SIGMA[:MAX]" (SIGMA of the
  // natural logarithm; draws above MAX become MAX). kInvalidArgument says what was expected.
  [[nodiscard]] static absl::StatusOr<Lengths> parse(std::string_view text);

  [[nodiscard]] int32_t draw(uint64_t seed, uint64_t counter) const;  // at least 1
  [[nodiscard]] const std::string& text() const { return text_; }     // as parsed

 private:
  enum class Kind : uint8_t { kFixed, kUniform, kLognormal };

  Kind kind_ = Kind::kFixed;
  int32_t low_ = 1;   // fixed: the number
  int32_t high_ = 1;  // lognormal: MAX
  double median_ = 1;
  double sigma_ = 0;
  std::string text_;
};

}  // namespace r1d::cli::bench
