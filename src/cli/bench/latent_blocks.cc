// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/latent_blocks.h"

#include <algorithm>
#include <cstring>

#include "r1d/base/random.h"

namespace r1d::cli::bench {

std::vector<std::byte> random_fp8_blocks(const ops::LatentFormat& format,
                                         int32_t block_size,
                                         int32_t count) {
  constexpr float kScale = 0x1p-7F;
  constexpr uint64_t kUpTo240 = 0xF7F7F7F7F7F7F7F7;  // of the bits of eight codes
  const int64_t block_bytes = block_size * format.bytes_per_token();
  std::vector<std::byte> blocks(static_cast<size_t>(count * block_bytes));
  for (int32_t b = 0; b < count; ++b) {
    std::byte* block = blocks.data() + b * block_bytes;
    for (int64_t at = 0; at < block_size * format.latent; at += 8) {
      const uint64_t codes =
          base::random_bits(static_cast<uint64_t>(b), static_cast<uint64_t>(at)) & kUpTo240;
      std::memcpy(block + at, &codes, sizeof(codes));
    }
    auto* rope = reinterpret_cast<uint16_t*>(block + format.rope_offset(block_size, 0));
    for (int64_t i = 0; i < block_size * format.rope; ++i) {
      const double unit = base::random_unit(static_cast<uint64_t>(b) + 1, static_cast<uint64_t>(i));
      rope[i] = f32_to_bf16(static_cast<float>(3.4 * unit - 1.7));
    }
    auto* scales = reinterpret_cast<float*>(block + format.scales_offset(block_size, 0));
    std::fill_n(scales, block_size * format.groups(), kScale);
  }
  return blocks;
}

}  // namespace r1d::cli::bench
