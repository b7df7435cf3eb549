// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/dtype.h"

#include <algorithm>
#include <cmath>

namespace r1d {

uint8_t f32_to_f8e4m3(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80U : 0U);
  if (std::isnan(value)) return sign | 0x7FU;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0F) return sign | 0x7EU;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent, m in [0.5, 1)
  // The step between neighbours: 2^(e - 3) in the binade of 2^e, 2^-9 below the least normal 2^-6.
  const int step_exponent = std::max(exponent - 1, -6) - 3;
  const float steps = std::nearbyint(std::ldexp(magnitude, -step_exponent));  // ties to even
  const float rounded = std::ldexp(steps, step_exponent);
  if (rounded < 0x1p-6F) return sign | static_cast<uint8_t>(steps);
  std::frexp(rounded, &exponent);
  const auto mantissa = static_cast<uint32_t>(std::ldexp(rounded, 4 - exponent)) - 8U;
  return sign | static_cast<uint8_t>(((exponent - 1 + 7) << 3) | mantissa);
}

}  // namespace r1d
