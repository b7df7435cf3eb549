// SPDX-License-Identifier: Apache-2.0
// What benchmarks and tests sum: small whole numbers, so that every order and format gives the same
// sum, and one that names its element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace r1d::ops {

// Element i of rank `rank`: sums of 8 ranks stay below 256, exact in bf16.
inline float collective_sample(int64_t i, int32_t rank) {
  return static_cast<float>((i * 7 + rank * 3) % 31 - 15);
}
inline float collective_sample_sum(int64_t i, int32_t world_size) {
  float sum = 0;
  for (int32_t rank = 0; rank < world_size; ++rank) sum += collective_sample(i, rank);
  return sum;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

}  // namespace r1d::ops
