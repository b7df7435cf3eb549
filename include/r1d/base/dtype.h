// SPDX-License-Identifier: Apache-2.0
// The number formats of checkpoints and caches, and their exact scalar conversions (the reference
// that vectorised and CUDA code is tested against).
#pragma once

#include <bit>
#include <cstdint>

namespace r1d {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF8E4M3,  // e4m3fn: 1-4-3 bits, bias 7, no infinity, NaN only 0x7F and 0xFF, largest 448
};

[[nodiscard]] constexpr int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

// The name safetensors headers use.
[[nodiscard]] constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
  }
  return "?";
}

[[nodiscard]] constexpr float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest even; a NaN stays a (quiet) NaN.
[[nodiscard]] constexpr uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

[[nodiscard]] constexpr float f8e4m3_to_f32(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7FU;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80U) << 24;
  if (magnitude == 0x7FU) return std::bit_cast<float>(sign | 0x7FC00000U);
  // As an f32 whose exponent field is the e4m3 one, then the bias moves by 127 - 7 = 120.
  const float unbiased = std::bit_cast<float>(magnitude << 20) * 0x1p120F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(unbiased));
}

// Rounds to nearest even and saturates at +-448; only a NaN gives a NaN.
[[nodiscard]] uint8_t f32_to_f8e4m3(float value);

}  // namespace r1d
