// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/gpu_info.h"

#include <gtest/gtest.h>

#include "r1d/base/status.h"

namespace r1d::device {
namespace {

TEST(GpuInfoTest, ListsWhatTheDriverShowsOrNothing) {
  const auto gpus = list_gpus();
  ASSERT_TRUE(gpus.ok()) << message_of(gpus.status());
  if (gpus->empty()) GTEST_SKIP() << "no GPU here";
  for (const GpuInfo& gpu : *gpus) {
    EXPECT_FALSE(gpu.name.empty());
    EXPECT_GE(gpu.compute_major, 7);
    EXPECT_GT(gpu.memory_bytes, int64_t{1} << 30);
  }
}

TEST(GpuInfoTest, DescriptionSaysHowTheBinaryWasBuilt) {
  EXPECT_NE(describe_gpus().find(built_with_cuda() ? "CUDA " : "built without CUDA"),
            std::string::npos);
}

}  // namespace
}  // namespace r1d::device
