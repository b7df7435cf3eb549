// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: the value depends on (seed, counter) alone, never on what ran
// before, so a sequence draws the same tokens whatever the batch.
#pragma once

#include <cstdint>

namespace r1d::base {

// One well mixed 64-bit value per (seed, counter). Source: SplitMix64 (Steele, Lea, Flood, 2014),
// applied twice so that neighbouring seeds do not share neighbouring streams.
[[nodiscard]] constexpr uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}
[[nodiscard]] constexpr uint64_t random_bits(uint64_t seed, uint64_t counter) {
  return mix64(mix64(seed) ^ mix64(counter ^ 0xD1B54A32D192ED03ULL));
}

// Uniform in [0, 1), 53 bits.
[[nodiscard]] constexpr double random_unit(uint64_t seed, uint64_t counter) {
  return static_cast<double>(random_bits(seed, counter) >> 11) * 0x1p-53;
}

}  // namespace r1d::base
