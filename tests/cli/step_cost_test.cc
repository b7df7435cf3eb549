// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/step_cost.h"

#include <string>

#include <gtest/gtest.h>

#include "tests/support/test_data.h"

namespace r1d::cli::bench {
namespace {

StepCost cost_of(const std::string& name) {
  const auto config = checkpoint::ModelConfig::load(test::data("../../configs/models/") + name);
  EXPECT_TRUE(config.ok()) << config.status();
  const auto cost = step_cost(*checkpoint::make_dummy_source(*config, 1));
  EXPECT_TRUE(cost.ok()) << cost.status();
  return *cost;
}

// 13 layers of attention, a dense one, 12 with 4 of 32 experts and the shared one.
constexpr double kAttention = 768 * 2048 + 3072 * 768 + 576 * 2048 + 4096 * 512 + 2048 * 2048;
constexpr double kLayers = 13 * kAttention + 3 * 6144 * 2048 + 12 * 5 * 3 * 512 * 2048;
constexpr double kRouters = 12 * 32 * 2048;
constexpr double kHead = 32768 * 2048;

TEST(StepCostTest, CountsWhatOneTokenMeets) {
  const StepCost fp8 = cost_of("v3-1b-fp8.json");
  EXPECT_DOUBLE_EQ(fp8.flops_per_token, 2 * (kLayers + kRouters));
  EXPECT_DOUBLE_EQ(fp8.flops_per_logits, 2 * kHead);
  const double kNormsAndBiases = 1e6;  // at most
  EXPECT_GE(fp8.decode_bytes, kLayers + 2 * (kHead + kRouters));
  EXPECT_LE(fp8.decode_bytes, kLayers + 2 * (kHead + kRouters) + kNormsAndBiases);
  const StepCost bf16 = cost_of("v3-1b-bf16.json");
  EXPECT_DOUBLE_EQ(bf16.flops_per_token, fp8.flops_per_token);
  EXPECT_DOUBLE_EQ(bf16.decode_bytes, fp8.decode_bytes + kLayers);
}

TEST(StepCostTest, AddsTheHeadOnceASequence) {
  const StepCost cost{.decode_bytes = 0, .flops_per_token = 10, .flops_per_logits = 7};
  EXPECT_DOUBLE_EQ(cost.prefill_flops(512, 3), 5120 + 21);
}

TEST(PlainReadTest, ReadsAtARateThatMemoryMayHave) {
  const auto read = PlainRead::create(2, size_t{128} << 20);
  ASSERT_TRUE(read.ok()) << read.status();
  for (int i = 0; i < 3; ++i) {
    const double rate = (*read)->bytes_per_second();
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 1e13);
  }
}

}  // namespace
}  // namespace r1d::cli::bench
