// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
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

// The same as bf16, which holds them exactly, for byte shuffles: the low and the high byte of the
// 128 codes without a sign. NaN stays NaN.
struct F8Bytes {
  alignas(64) std::array<uint8_t, 128> low{};
  alignas(64) std::array<uint8_t, 128> high{};
};
inline constexpr F8Bytes kF8Bytes = [] {
  F8Bytes bytes;
  for (uint32_t code = 0; code < 128; ++code) {
    const uint32_t bits = code == 0x7FU ? 0x7FC00000U : std::bit_cast<uint32_t>(kF8Values[code]);
    bytes.low[code] = static_cast<uint8_t>(bits >> 16);
    bytes.high[code] = static_cast<uint8_t>(bits >> 24);
  }
  return bytes;
}();

}  // namespace r1d::ops::cpu
