// SPDX-License-Identifier: Apache-2.0
// The latent cache in FP8 as tests see it, written from its description alone: a token's values to
// the bytes of a block and back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "r1d/base/dtype.h"

namespace r1d::test {

class Fp8Cache {
 public:
  Fp8Cache(int64_t num_blocks, int block_size, int latent, int rope)
      : block_size_(block_size),
        latent_(latent),
        rope_(rope),
        groups_((latent + 127) / 128),
        bytes(static_cast<size_t>(num_blocks) * block_size * token_bytes(), 0x7F) {}

  int token_bytes() const { return latent_ + 2 * rope_ + 4 * groups_; }

  // Quantizes `values` (latent, then rope) into slot `slot`.
  void store(int64_t slot, const float* values) {
    for (int g = 0; g < groups_; ++g) {
      const int width = std::min(128, latent_ - 128 * g);
      const float* from = values + 128 * g;
      float largest = 0;
      for (int i = 0; i < width; ++i) largest = std::max(largest, std::abs(from[i]));
      int exponent = -40;
      while (std::ldexp(448.0F, exponent) < largest) ++exponent;
      const float scale = std::ldexp(1.0F, exponent);
      std::memcpy(at(slot, scales() + token(slot) * 4 * groups_ + 4 * g), &scale, 4);
      for (int i = 0; i < width; ++i) *code(slot, 128 * g + i) = f32_to_f8e4m3(from[i] / scale);
    }
    for (int i = 0; i < rope_; ++i) {
      const uint16_t bits = f32_to_bf16(values[latent_ + i]);
      std::memcpy(at(slot, block_size_ * latent_ + (token(slot) * rope_ + i) * 2), &bits, 2);
    }
  }
  // Value i of the slot, as every reader should see it.
  float value(int64_t slot, int i) {
    if (i >= latent_) {
      uint16_t bits = 0;
      std::memcpy(
          &bits, at(slot, block_size_ * latent_ + (token(slot) * rope_ + i - latent_) * 2), 2);
      return bf16_to_f32(bits);
    }
    float scale = 0;
    std::memcpy(&scale, at(slot, scales() + token(slot) * 4 * groups_ + i / 128 * 4), 4);
    return f8e4m3_to_f32(*code(slot, i)) * scale;
  }
  // Takes over what `other` holds for the slot.
  void copy_token(int64_t slot, Fp8Cache& other) {
    const auto copy = [&](int offset, int count) {
      std::memcpy(at(slot, offset), other.at(slot, offset), static_cast<size_t>(count));
    };
    for (int i = 0; i < latent_; ++i) *code(slot, i) = *other.code(slot, i);
    copy(block_size_ * latent_ + token(slot) * rope_ * 2, rope_ * 2);
    copy(scales() + token(slot) * 4 * groups_, 4 * groups_);
  }

 private:
  int token(int64_t slot) const { return static_cast<int>(slot % block_size_); }
  int scales() const { return block_size_ * (latent_ + 2 * rope_); }
  uint8_t* at(int64_t slot, int offset) {
    return bytes.data() + slot / block_size_ * block_size_ * token_bytes() + offset;
  }
  uint8_t* code(int64_t slot, int i) {
    const int group = i / 128;
    const int width = std::min(128, latent_ - 128 * group);
    return at(slot, group * 128 * block_size_ + token(slot) * width + i % 128);
  }

  int block_size_;
  int latent_;
  int rope_;
  int groups_;

 public:
  std::vector<uint8_t> bytes;  // of all blocks; 0x7F, a NaN, where nothing was stored
};

}  // namespace r1d::test
