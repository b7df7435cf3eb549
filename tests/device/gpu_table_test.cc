// SPDX-License-Identifier: Apache-2.0
#include "r1d/device/gpu_table.h"

#include <set>
#include <string>

#include <gtest/gtest.h>

namespace r1d::device {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(GpuTableTest, EveryModelHasANameOfItsOwnAndFiguresThatCanBe) {
  std::set<std::string> names;
  for (const GpuModel& model : gpu_models()) {
    EXPECT_TRUE(names.emplace(model.name).second) << model.name;
    EXPECT_EQ(find_gpu_model(model.name), &model);
    EXPECT_GT(model.memory_bytes, 30 * kGiB) << model.name;
    EXPECT_LT(model.memory_bytes, 300 * kGiB) << model.name;
    EXPECT_GT(model.memory_bandwidth, 0.5e12) << model.name;
    EXPECT_LT(model.memory_bandwidth, 10e12) << model.name;
    // FP8 tensor cores came with sm_89 and do twice what bf16 does.
    EXPECT_EQ(model.fp8_flops > 0, model.compute_capability >= 89) << model.name;
    if (model.fp8_flops > 0) {
      EXPECT_NEAR(model.fp8_flops / model.bf16_flops, 2, 0.03) << model.name;
    }
  }
  EXPECT_EQ(find_gpu_model("h300"), nullptr);
}

TEST(GpuTableTest, ADriversNameAndMemoryFindTheModel) {
  const auto name_of = [](const char* product, int64_t bytes) {
    const GpuModel* model = match_gpu_model(product, bytes);
    return model == nullptr ? std::string() : std::string(model->name);
  };
  EXPECT_EQ(name_of("NVIDIA H200", 150'000'000'000), "h200");
  EXPECT_EQ(name_of("NVIDIA H20", 95 * kGiB), "h20");
  EXPECT_EQ(name_of("NVIDIA H100 80GB HBM3", 79 * kGiB), "h100-80gb");
  EXPECT_EQ(name_of("NVIDIA A100-SXM4-80GB", 79 * kGiB), "a100-80gb");
  EXPECT_EQ(name_of("NVIDIA A100-SXM4-40GB", 39 * kGiB), "a100-40gb");
  EXPECT_EQ(name_of("NVIDIA H200 MIG 1g.18gb", 16 * kGiB), "") << "a slice of a GPU is another GPU";
  EXPECT_EQ(name_of("NVIDIA GeForce RTX 4090", 24 * kGiB), "");
}

}  // namespace
}  // namespace r1d::device
