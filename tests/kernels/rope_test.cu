// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "kernels/rope/rope.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

std::vector<float> inverse_frequencies(int64_t rope) {
  std::vector<float> freq;
  for (int64_t i = 0; i < rope / 2; ++i) {
    freq.push_back(static_cast<float>(
        1 / std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(rope))));
  }
  return freq;
}

void expect_angles(const std::vector<float>& got,
                   const std::vector<int32_t>& positions,
                   const std::vector<float>& freq,
                   float scale) {
  const size_t pairs = freq.size();
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t j = 0; j < pairs; ++j) {
      const float angle = static_cast<float>(positions[t]) * freq[j];
      const double cos = std::cos(static_cast<double>(angle)) * scale;
      const double sin = std::sin(static_cast<double>(angle)) * scale;
      ASSERT_NEAR(got[t * 2 * pairs + j], cos, 2e-7 * std::abs(cos) + 1e-12)
          << positions[t] << " pair " << j;
      ASSERT_NEAR(got[t * 2 * pairs + pairs + j], sin, 2e-7 * std::abs(sin) + 1e-12)
          << positions[t] << " pair " << j;
    }
  }
}

TEST(RopeTest, AnglesAreExactToTheLargestPosition) {
  R1D_NEEDS_GPU(80);
  for (const int64_t rope : {2, 8, 64, 128}) {
    std::vector<int32_t> positions = {
        0, 1, 2, 3, 355, 710, 4095, 163839, 163840, 1 << 20, 2147483647};
    for (int32_t p = 5; p < 170000; p += 97) positions.push_back(p);
    const auto freq = inverse_frequencies(rope);
    DeviceArray<int32_t> d_positions(positions);
    DeviceArray<float> d_freq(freq);
    DeviceArray<float> out(positions.size() * static_cast<size_t>(rope));
    ASSERT_EQ(rope_angles({.positions = d_positions.data(),
                           .inv_freq = d_freq.data(),
                           .cos_sin_scale = 1.25F,
                           .tokens = static_cast<int64_t>(positions.size()),
                           .rope = rope,
                           .cos_sin = out.data()},
                          {}),
              cudaSuccess);
    expect_angles(out.download(), positions, freq, 1.25F);
  }
}

struct Sequence {
  int32_t begin;
  int32_t len;
  int32_t context;
};

void check_begin(const std::vector<Sequence>& sequences,
                 int64_t tokens,
                 int32_t block_size,
                 int64_t rope) {
  std::vector<int32_t> begin;
  std::vector<int32_t> len;
  std::vector<int32_t> context;
  std::vector<int32_t> block_begin;
  std::vector<int32_t> blocks;
  std::vector<int32_t> positions(static_cast<size_t>(tokens), 0);
  std::vector<int64_t> slots(static_cast<size_t>(tokens), -1);
  for (const Sequence& s : sequences) {
    begin.push_back(s.begin);
    len.push_back(s.len);
    context.push_back(s.context);
    block_begin.push_back(static_cast<int32_t>(blocks.size()));
    const size_t first = blocks.size();
    for (int32_t i = 0; i < (s.context + block_size - 1) / block_size; ++i) {
      blocks.push_back(static_cast<int32_t>(100000 + (blocks.size() * 7919) % 1000000));
    }
    if (s.context < s.len) continue;
    for (int32_t i = 0; i < s.len; ++i) {
      const int32_t p = s.context - s.len + i;
      const auto t = static_cast<size_t>(s.begin + i);
      positions[t] = p;
      slots[t] =
          static_cast<int64_t>(blocks[first + static_cast<size_t>(p / block_size)]) * block_size +
          p % block_size;
    }
  }
  if (blocks.empty()) blocks.push_back(0);
  DeviceArray<int32_t> d_begin(begin);
  DeviceArray<int32_t> d_len(len);
  DeviceArray<int32_t> d_context(context);
  DeviceArray<int32_t> d_block_begin(block_begin);
  DeviceArray<int32_t> d_blocks(blocks);
  const auto freq = inverse_frequencies(rope);
  DeviceArray<float> d_freq(freq);
  DeviceArray<int32_t> out_positions(static_cast<size_t>(tokens));
  DeviceArray<int64_t> out_slots(static_cast<size_t>(tokens));
  DeviceArray<float> out_angles(static_cast<size_t>(tokens * rope));
  ASSERT_EQ(begin_step({.sequences = {d_begin.data(),
                                      d_len.data(),
                                      d_context.data(),
                                      d_block_begin.data(),
                                      d_blocks.data(),
                                      static_cast<int32_t>(sequences.size())},
                        .block_size = block_size,
                        .tokens = tokens,
                        .positions = out_positions.data(),
                        .slots = out_slots.data(),
                        .inv_freq = d_freq.data(),
                        .rope = rope,
                        .cos_sin = out_angles.data()},
                       {}),
            cudaSuccess);
  EXPECT_EQ(out_positions.download(), positions);
  EXPECT_EQ(out_slots.download(), slots);
  expect_angles(out_angles.download(), positions, freq, 1);
}

TEST(BeginStepTest, FindsPositionsAndSlots) {
  R1D_NEEDS_GPU(80);
  check_begin({{0, 1, 1}}, 1, 64, 64);
  check_begin({{0, 1, 4097}}, 1, 64, 64);
  check_begin({{0, 9, 9}, {9, 1, 200}, {10, 30, 163840}}, 40, 64, 64);
  check_begin({{30, 10, 70}, {0, 30, 35}}, 40, 16, 0);         // any order
  check_begin({{0, 1, 77}, {1, 1, 0}, {2, 1, 0}}, 3, 64, 64);  // padding sequences
  check_begin({{3, 2, 5}}, 9, 1, 8);                           // tokens of no sequence
  check_begin({{0, 2500, 8192}, {2500, 1, 12}}, 2501, 64, 64);
  check_begin({}, 5, 64, 64);
  std::vector<Sequence> many;
  for (int32_t s = 0; s < 700; ++s) many.push_back({2 * s, 2, 2 + s * 3});
  check_begin(many, 1400, 32, 64);
}

TEST(RopeTest, RefusesOddSizes) {
  EXPECT_EQ(rope_angles({.tokens = 1, .rope = 3}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(rope_angles({.tokens = 0, .rope = 4}, {}), cudaSuccess);
  EXPECT_EQ(begin_step({.block_size = 0, .tokens = 1}, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
