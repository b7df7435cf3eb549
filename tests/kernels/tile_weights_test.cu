// SPDX-License-Identifier: Apache-2.0
#include "kernels/common/layout.h"
#include "kernels/tile_weights/tile_weights.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels::test {
namespace {

// The place of (row, column) in tiles, from layout.h's words.
size_t tiled_place(int64_t row, int64_t column, int64_t cols) {
  const int64_t tile = row / 64 * (cols / 128) + column / 128;
  const int64_t r = row % 64;
  const int64_t chunk = column % 128 / 16;
  return static_cast<size_t>(tile * 8192 + r * 128 + ((chunk ^ (r % 8)) * 16) + column % 16);
}

TEST(TileWeightsTest, EveryByteOfAWeightStandsWhereTheLayoutSays) {
  R1D_NEEDS_GPU(80);
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{64, 128}, {192, 384}, {2112, 7168}, {7168, 256}}) {
    const std::vector<uint8_t> host = random_f8(static_cast<size_t>(rows * cols), 1);
    const DeviceArray<uint8_t> source(host);
    DeviceArray<uint8_t> tiles(host.size());
    ASSERT_EQ(tile_weight(source.data(), rows, cols, tiles.data(), {}), cudaSuccess);
    const std::vector<uint8_t> got = tiles.download();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        ASSERT_EQ(got[tiled_place(r, c, cols)], host[static_cast<size_t>(r * cols + c)])
            << rows << "x" << cols << " row " << r << " column " << c;
      }
    }
  }
}

TEST(TileWeightsTest, GateAndUpRowsAlternateByEights) {
  R1D_NEEDS_GPU(80);
  for (const auto& [intermediate, cols] :
       {std::pair<int64_t, int64_t>{32, 128}, {96, 256}, {256, 7168}}) {
    const auto count = static_cast<size_t>(intermediate * cols);
    const std::vector<uint8_t> gate = random_f8(count, 2);
    const std::vector<uint8_t> up = random_f8(count, 3);
    const DeviceArray<uint8_t> gate_device(gate);
    const DeviceArray<uint8_t> up_device(up);
    DeviceArray<uint8_t> tiles(2 * count);
    ASSERT_EQ(
        tile_gate_up(gate_device.data(), up_device.data(), intermediate, cols, tiles.data(), {}),
        cudaSuccess);
    const std::vector<uint8_t> got = tiles.download();
    for (int64_t r = 0; r < intermediate; ++r) {
      const int64_t gate_row = r / 8 * 16 + r % 8;
      for (int64_t c = 0; c < cols; ++c) {
        const auto at = static_cast<size_t>(r * cols + c);
        ASSERT_EQ(got[tiled_place(gate_row, c, cols)], gate[at]) << "gate " << r << " " << c;
        ASSERT_EQ(got[tiled_place(gate_row + 8, c, cols)], up[at]) << "up " << r << " " << c;
      }
    }
  }
}

TEST(TileWeightsTest, RefusesRaggedShapesAndAcceptsEmptyOnes) {
  R1D_NEEDS_GPU(80);
  DeviceArray<uint8_t> some(64 * 128);
  EXPECT_EQ(tile_weight(some.data(), 65, 128, some.data(), {}), cudaErrorInvalidValue);
  EXPECT_EQ(tile_weight(some.data(), 64, 64, some.data(), {}), cudaErrorInvalidValue);
  EXPECT_EQ(tile_gate_up(some.data(), some.data(), 16, 128, some.data(), {}),
            cudaErrorInvalidValue);
  EXPECT_EQ(tile_weight(some.data(), 0, 128, some.data(), {}), cudaSuccess);
}

}  // namespace
}  // namespace r1d::kernels::test
