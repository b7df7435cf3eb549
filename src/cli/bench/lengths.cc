// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/lengths.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <vector>

#include "r1d/base/random.h"
#include "r1d/base/status.h"

#include "cli/bench/units.h"

namespace r1d::cli::bench {
namespace {

absl::Status bad(std::string_view text) {
  return invalid_argument(
      "\"{}\": expected a number of tokens, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MAX] (1 to "
      "{} tokens)",
      text,
      kMostTokens);
}

// A whole number of tokens; 0 when it is none.
int32_t tokens(const std::string& part) {
  int32_t value = 0;
  const char* const end = part.data() + part.size();
  const auto [stop, error] = std::from_chars(part.data(), end, value);
  return error == std::errc() && stop == end && value >= 1 && value <= kMostTokens ? value : 0;
}

// Standard normal, by Box and Muller; 1 - u keeps the logarithm off zero.
double normal(uint64_t seed, uint64_t counter) {
  const double radius = std::sqrt(-2 * std::log(1 - base::random_unit(seed, 2 * counter)));
  return radius * std::cos(2 * std::numbers::pi * base::random_unit(seed, 2 * counter + 1));
}

}  // namespace

absl::StatusOr<Lengths> Lengths::parse(std::string_view text) {
  const std::vector<std::string> parts = split(text, ':');
  Lengths lengths;
  lengths.text_ = std::string(text);
  if (parts.size() == 1) {
    lengths.low_ = tokens(parts[0]);
    if (lengths.low_ == 0) return bad(text);
    return lengths;
  }
  if (parts[0] == "uniform" && parts.size() == 3) {
    lengths.kind_ = Kind::kUniform;
    lengths.low_ = tokens(parts[1]);
    lengths.high_ = tokens(parts[2]);
    if (lengths.low_ == 0 || lengths.high_ < lengths.low_) return bad(text);
    return lengths;
  }
  if (parts[0] == "lognormal" && (parts.size() == 3 || parts.size() == 4)) {
    lengths.kind_ = Kind::kLognormal;
    const auto sigma = parse_number(parts[2]);
    lengths.median_ = tokens(parts[1]);
    lengths.sigma_ = sigma.value_or(-1);
    lengths.high_ = parts.size() == 4 ? tokens(parts[3]) : kMostTokens;
    if (lengths.median_ < 1 || lengths.sigma_ < 0 || lengths.high_ == 0) return bad(text);
    return lengths;
  }
  return bad(text);
}

int32_t Lengths::draw(uint64_t seed, uint64_t counter) const {
  switch (kind_) {
    case Kind::kFixed:
      return low_;
    case Kind::kUniform: {
      const auto span = static_cast<uint64_t>(high_ - low_) + 1;
      return low_ + static_cast<int32_t>(base::random_bits(seed, counter) % span);
    }
    case Kind::kLognormal:
      break;
  }
  const double value = median_ * std::exp(sigma_ * normal(seed, counter));
  return static_cast<int32_t>(std::clamp(std::round(value), 1.0, static_cast<double>(high_)));
}

}  // namespace r1d::cli::bench
