// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "r1d/base/dtype.h"

namespace r1d::ops::cpu {

// Every e4m3 value times 2^-8 (exact), for targets without f16 conversion; load-inl.h says why
// 2^-8.
inline constexpr std::array<float, 256> kF8Values = [] {
  std::array<float, 256> values{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float value = f8e4m3_to_f32(static_cast<uint8_t>(bits));
    const bool is_nan = (bits & 0x7FU) == 0x7FU;
    values[bits] = is_nan ? value : value * 0x1p-8F;
  }
  return values;
}();

}  // namespace r1d::ops::cpu
