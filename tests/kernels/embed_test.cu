// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "kernels/embed/embed.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;
using test::random_floats;
using test::to_bf16;

void check_embed(int64_t cols, int64_t pad, bool f32) {
  SCOPED_TRACE(testing::Message() << cols << " columns, pad " << pad << " f32 " << f32);
  constexpr int64_t kRows = 50;
  constexpr int64_t kFirst = 1000;
  const auto table = random_floats(static_cast<size_t>(kRows * cols), 1);
  const auto bits = to_bf16(table);
  const std::vector<int32_t> ids = {1000, 1049, 1050, 999, -1, 0, 1017, 1017, 2147483647, 1023};
  DeviceArray<float> d_f32(table);
  DeviceArray<uint16_t> d_bf16(bits);
  DeviceArray<int32_t> d_ids(ids);
  const int64_t stride = cols + pad;
  DeviceArray<uint16_t> out(ids.size() * static_cast<size_t>(stride));
  ASSERT_EQ(embed({.table = f32 ? static_cast<void*>(d_f32.data()) : d_bf16.data(),
                   .table_f32 = f32,
                   .rows = kRows,
                   .first_row = kFirst,
                   .cols = cols,
                   .ids = d_ids.data(),
                   .tokens = static_cast<int64_t>(ids.size()),
                   .out = reinterpret_cast<__nv_bfloat16*>(out.data()),
                   .out_stride = stride},
                  {}),
            cudaSuccess);
  const auto got = out.download();
  for (size_t t = 0; t < ids.size(); ++t) {
    const int64_t row = ids[t] - kFirst;
    for (int64_t i = 0; i < stride; ++i) {
      uint16_t want = 0xFFFF;  // untouched
      if (i < cols) want = row >= 0 && row < kRows ? bits[static_cast<size_t>(row * cols + i)] : 0;
      ASSERT_EQ(got[t * static_cast<size_t>(stride) + static_cast<size_t>(i)], want)
          << "token " << t << " column " << i;
    }
  }
}

TEST(EmbedTest, CopiesRowsOfTheSliceAndZerosOthers) {
  R1D_NEEDS_GPU(80);
  for (const bool f32 : {false, true}) {
    for (const int64_t cols : {1, 8, 100, 64, 7168, 9001}) {
      check_embed(cols, 0, f32);
      check_embed(cols, 8, f32);
      check_embed(cols, 3, f32);
    }
  }
}

TEST(EmbedTest, AnEmptyStepAndBadSizes) {
  EXPECT_EQ(embed({.cols = 8, .tokens = 0}, {}), cudaSuccess);
  EXPECT_EQ(embed({.cols = 8, .tokens = 1}, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
