// SPDX-License-Identifier: Apache-2.0
// Between ranks: all_reduce_test.cu.
#include <vector>

#include <gtest/gtest.h>

#include "kernels/embed/fill_in_tokens.h"
#include "tests/kernels/support.cuh"

namespace r1d::kernels {
namespace {

using test::DeviceArray;

TEST(FillInTokensTest, IdsBelowZeroBecomeTheTokensOfTheirRows) {
  R1D_NEEDS_GPU(80);
  for (const size_t tokens : {1, 255, 256, 257, 4096}) {
    std::vector<SampledRow> rows(tokens);
    std::vector<int32_t> ids(tokens);
    std::vector<int32_t> want(tokens);
    for (size_t t = 0; t < tokens; ++t) {
      const size_t row = (t * 7 + 3) % tokens;
      rows[row].token = static_cast<int32_t>(5000 + row);
      ids[t] = t % 3 == 0 ? static_cast<int32_t>(t) : -1 - static_cast<int32_t>(row);
      want[t] = ids[t] < 0 ? static_cast<int32_t>(5000 + row) : ids[t];
    }
    DeviceArray<SampledRow> sampled(rows);
    DeviceArray<int32_t> on_device(ids);
    ASSERT_EQ(fill_in_tokens({.ids = on_device.data(),
                              .tokens = static_cast<int64_t>(tokens),
                              .sampled = sampled.data()},
                             {}),
              cudaSuccess);
    EXPECT_EQ(on_device.download(), want) << tokens << " tokens";
  }
}

TEST(FillInTokensTest, AnEmptyStepAndMissingPointers) {
  int32_t id = 0;
  EXPECT_EQ(fill_in_tokens({}, {}), cudaSuccess);
  EXPECT_EQ(fill_in_tokens({.ids = &id, .tokens = 1}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fill_in_tokens({.ids = &id, .tokens = -1}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(fill_in_tokens(PeerMemory{}, {.ids = &id, .tokens = 1}, 0, {}), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace r1d::kernels
