// SPDX-License-Identifier: Apache-2.0
// How the latent cache stores a token, and how many bytes that takes. No absl, fmt or gRPC here:
// nvcc reads this header.
//
//   f32, bf16   A token is a row: its latent values, then its rope values.
//   e4m3        A block of B tokens is, one after the other,
//                 codes   for each group of 128 latent values (the last may be shorter): [B, 128]
//                 rope    [B, rope] bf16
//                 scales  [B, groups] f32
//               latent value = code * scale of its token and group.
//
// R1's token takes 4 * 128 + 64 * 2 + 4 * 4 = 656 bytes in FP8, 1152 in bf16. Codes and rope are
// rows of 128 bytes there, [B, 128] each: whole boxes for a GPU's copy engine.
//
// A scale is a power of two. So code * scale is exact in bf16 and in f16, and every way of
// attending (absorbed or rebuilt, CPU or GPU) multiplies the same numbers; quantizing is a change
// of exponent and one rounding, alike everywhere. It costs no accuracy: e4m3 is a floating-point
// format itself, and up to one bit of its range below the largest value is all that is left unused.
#pragma once

#include <bit>
#include <cstdint>

#include "r1d/base/dtype.h"

namespace r1d::ops {

struct LatentFormat {
  static constexpr int64_t kGroup = 128;  // latent values under one scale

  DType dtype = DType::kBF16;
  int64_t latent = 0;  // e4m3: a multiple of 4
  int64_t rope = 0;    // even

  [[nodiscard]] constexpr bool valid() const {
    return dtype != DType::kF8E4M3 || (latent % 4 == 0 && rope % 2 == 0);
  }
  [[nodiscard]] constexpr int64_t groups() const { return (latent + kGroup - 1) / kGroup; }
  [[nodiscard]] constexpr int64_t bytes_per_token() const {
    if (dtype != DType::kF8E4M3) return (latent + rope) * dtype_bytes(dtype);
    return latent + rope * dtype_bytes(DType::kBF16) + groups() * dtype_bytes(DType::kF32);
  }

  // e4m3: bytes from the begin of a block to what belongs to its token `token`.
  [[nodiscard]] constexpr int64_t codes_offset(int64_t block_size,
                                               int64_t group,
                                               int64_t token) const {
    return group * kGroup * block_size + token * group_width(group);
  }
  [[nodiscard]] constexpr int64_t rope_offset(int64_t block_size, int64_t token) const {
    return latent * block_size + token * rope * dtype_bytes(DType::kBF16);
  }
  [[nodiscard]] constexpr int64_t scales_offset(int64_t block_size, int64_t token) const {
    return rope_offset(block_size, block_size) + token * groups() * dtype_bytes(DType::kF32);
  }
  [[nodiscard]] constexpr int64_t group_width(int64_t group) const {
    const int64_t rest = latent - group * kGroup;
    return rest < kGroup ? rest : kGroup;
  }

  // The scale of a group whose largest magnitude is `largest`: the least power of two under which
  // no code exceeds 448, but at least 2^-40, so that zeros have one too.
  [[nodiscard]] static constexpr float scale_of(float largest) {
    constexpr uint32_t kLeast = 127 - 40;
    // 448 = 1.75 * 2^8. The addition carries into the exponent from mantissas above 1.75 on.
    const uint32_t exponent = (std::bit_cast<uint32_t>(largest) + 0x1FFFFFU) >> 23;
    return std::bit_cast<float>((exponent < kLeast + 8 ? kLeast : exponent - 8) << 23);
  }
  // 1 / scale, exactly.
  [[nodiscard]] static constexpr float inverse_of(float scale) {
    return std::bit_cast<float>((254U << 23) - std::bit_cast<uint32_t>(scale));
  }
};

}  // namespace r1d::ops
