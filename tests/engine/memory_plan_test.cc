// SPDX-License-Identifier: Apache-2.0
#include "r1d/engine/memory_plan.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "engine/memory_shortage.h"
#include "tests/support/test_data.h"

namespace r1d::engine {
namespace {

using checkpoint::ExpertSplit;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr int64_t kGi = int64_t{1} << 30;

std::unique_ptr<checkpoint::WeightSource> r1() {
  const auto config = checkpoint::ModelConfig::load(test::data("configs/deepseek-r1.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  return checkpoint::make_dummy_source(*config, 0);
}

EngineOptions gpu_options(int32_t world_size) {
  EngineOptions options;
  options.device = Device::kCuda;
  options.world_size = world_size;
  options.kv_cache_dtype = DType::kBF16;
  options.max_num_batched_tokens = 8192;
  return options;
}

MemoryTarget gpu(const char* name) {
  return target_of(*device::find_gpu_model(name));
}

std::string refusal(const EngineOptions& options, const MemoryTarget& target) {
  const auto plan = plan_memory(*r1(), options, target);
  EXPECT_FALSE(plan.ok());
  return message_of(plan.status());
}

// Bytes of an FP8 matrix and its scales, which start at multiples of 128 bytes.
int64_t fp8(int64_t rows, int64_t cols) {
  const int64_t scales = (rows + 127) / 128 * ((cols + 127) / 128) * 4;
  return rows * cols + (scales + 127) / 128 * 128;
}

TEST(MemoryPlanTest, WeightsOfARankOfEightOfR1) {
  const auto plan = plan_memory(*r1(), gpu_options(8), gpu("h200"));
  ASSERT_TRUE(plan.ok()) << message_of(plan.status());
  const int64_t attention = fp8(1536, 7168) + fp8(576, 7168) + fp8(24576 / 8, 1536) +
                            fp8(32768 / 8, 512) + fp8(7168, 16384 / 8);
  const int64_t expert = 2 * fp8(256, 7168) + fp8(7168, 256);
  EXPECT_EQ((*plan)[MemoryPart::kAttention], 61 * attention);
  EXPECT_EQ((*plan)[MemoryPart::kExperts], int64_t{58} * 256 * expert);
  EXPECT_EQ((*plan)[MemoryPart::kSharedExperts], 58 * expert);
  EXPECT_EQ((*plan)[MemoryPart::kDense], 3 * (2 * fp8(2304, 7168) + fp8(7168, 2304)));
  EXPECT_EQ((*plan)[MemoryPart::kRouters], 58 * (256 * 7168 * 2 + 256 * 4));
  EXPECT_EQ((*plan)[MemoryPart::kEmbeddings], 2 * 129280 / 8 * 7168 * 2);
  EXPECT_EQ((*plan)[MemoryPart::kNorms], (61 * (2 * 7168 + 1536 + 512) + 7168) * 4);
  EXPECT_EQ((*plan)[MemoryPart::kMtp], 0);
  EXPECT_EQ(plan->weights() - (*plan)[MemoryPart::kKernelWeights], 85'145'008'512);
}

TEST(MemoryPlanTest, WhatIsLeftOfAnH200IsKvCache) {
  EngineOptions options = gpu_options(8);
  const auto plan = plan_memory(*r1(), options, gpu("h200"));
  ASSERT_TRUE(plan.ok()) << message_of(plan.status());
  EXPECT_EQ(plan->cache.bytes_per_token, 70272);
  EXPECT_EQ((*plan)[MemoryPart::kLatentCache], int64_t{plan->cache.num_blocks} * 64 * 70272);
  EXPECT_LE(plan->total(), plan->memory_bytes);
  EXPECT_GT(plan->total(), plan->memory_bytes - 64 * 70272) << "a block more would not fit";
  EXPECT_EQ((*plan)[MemoryPart::kActivations], int64_t{3} * 8192 * 7168 * 2);
  // 2 GiB and 2 % stay with the driver, its graphs and nobody.
  EXPECT_EQ(
      (*plan)[MemoryPart::kGraphs] + (*plan)[MemoryPart::kContext] + (*plan)[MemoryPart::kReserve],
      2 * kGi + plan->memory_bytes / 50);
  EXPECT_EQ(plan->expected(), plan->total() - (*plan)[MemoryPart::kReserve]);
  EXPECT_EQ(plan->counted().total(),
            plan->expected() - (*plan)[MemoryPart::kGraphs] - (*plan)[MemoryPart::kContext]);
  EXPECT_THAT(describe(*plan), AllOf(HasSubstr("experts 81.76 GB, "), HasSubstr("of 150.00 GB")));

  options.max_model_len = 4096;
  options.max_batch_size = 16;
  const auto small = plan_memory(*r1(), options, gpu("h200"));
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(small->cache.num_blocks, 16 * 64) << "no more than a full batch can use";
}

TEST(MemoryPlanTest, WholeExpertsWeighWhatSlicesDo) {
  EngineOptions options = gpu_options(8);
  const auto sliced = plan_memory(*r1(), options, gpu("h200"));
  options.expert_split = ExpertSplit::kExpert;
  const auto whole = plan_memory(*r1(), options, gpu("h200"));
  ASSERT_TRUE(sliced.ok() && whole.ok());
  EXPECT_EQ((*whole)[MemoryPart::kExperts],
            int64_t{58} * 32 * (2 * fp8(2048, 7168) + fp8(7168, 2048)));
  EXPECT_NEAR(static_cast<double>((*whole)[MemoryPart::kExperts]),
              static_cast<double>((*sliced)[MemoryPart::kExperts]),
              58 * 256 * 3 * 64);  // alignment of the slices' scales
}

TEST(MemoryPlanTest, TheMtpLayerIsOnTop) {
  EngineOptions options = gpu_options(8);
  const auto without = plan_memory(*r1(), options, gpu("h200"));
  options.with_mtp = true;
  const auto with = plan_memory(*r1(), options, gpu("h200"));
  ASSERT_TRUE(without.ok() && with.ok());
  EXPECT_GT((*with)[MemoryPart::kMtp], 1'400'000'000);
  EXPECT_EQ((*with)[MemoryPart::kExperts], (*without)[MemoryPart::kExperts]);
}

TEST(MemoryPlanTest, R1OnEightGpusOf80GbIsRefusedWithTheSum) {
  const std::string words = refusal(gpu_options(8), gpu("h100-80gb"));
  EXPECT_THAT(words,
              AllOf(HasSubstr("the model does not fit: a rank of 8 takes "),
                    HasSubstr("experts 81.76 GB + "),
                    HasSubstr("workspaces "),
                    HasSubstr("reserve "),
                    HasSubstr(" + 4.50 MB of KV cache at least; h100-80gb has 84.93 GB; it takes "),
                    HasSubstr("engine.world_size 16"),
                    HasSubstr("a GPU like h200")));
  EXPECT_THAT(words, Not(HasSubstr("max_num_batched_tokens"))) << "no step is small enough";
  EXPECT_EQ(plan_memory(*r1(), gpu_options(8), gpu("h100-80gb")).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(plan_memory(*r1(), gpu_options(16), gpu("h100-80gb")).ok()) << "as it says";
}

TEST(MemoryPlanTest, AStepThatIsTooLargeIsNamed) {
  EngineOptions options = gpu_options(8);
  options.max_num_batched_tokens = 1 << 17;
  const std::string words = refusal(options, gpu("h20"));
  EXPECT_THAT(words, HasSubstr("a lower scheduler.max_num_batched_tokens"));
  options.max_num_batched_tokens = 2048;
  EXPECT_TRUE(plan_memory(*r1(), options, gpu("h20")).ok());
}

TEST(MemoryPlanTest, ACacheOrALengthThatDoesNotFitIsNamed) {
  EngineOptions options = gpu_options(8);
  options.kv_cache_bytes = 100'000'000'000;
  EXPECT_THAT(
      refusal(options, gpu("h200")),
      AllOf(HasSubstr("100.00 GB of KV cache"), HasSubstr("a lower engine.kv_cache_memory")));
  options.kv_cache_bytes = 0;
  options.max_model_len = 163840;
  options.max_num_batched_tokens = 2048;
  EXPECT_THAT(refusal(options, gpu("h20")),
              AllOf(HasSubstr("11.51 GB of KV cache at least"),
                    HasSubstr("a lower scheduler.max_model_len")));
  options.max_model_len = 163841;
  EXPECT_THAT(refusal(options, gpu("h200")), HasSubstr("max_position_embeddings 163840"));
  options.max_model_len = 0;
  options.kv_cache_bytes = 1000;
  EXPECT_THAT(refusal(options, gpu("h200")), HasSubstr("would hold no block"));
}

TEST(MemoryPlanTest, AWorldSizeThatDoesNotDivideIsNamedByItsField) {
  EXPECT_THAT(refusal(gpu_options(3), gpu("h200")),
              HasSubstr("num_attention_heads 128 cannot be split over 3 ranks"));
  EXPECT_THAT(refusal(gpu_options(65), gpu("h200")), HasSubstr("world_size: expected 1 to 64"));
  checkpoint::ModelConfig config = r1()->config();
  config.n_routed_experts = 252;
  config.n_group = 1;
  EngineOptions options = gpu_options(8);
  options.expert_split = ExpertSplit::kExpert;
  EXPECT_THAT(
      message_of(
          plan_memory(*checkpoint::make_dummy_source(config, 0), options, gpu("h200")).status()),
      HasSubstr("n_routed_experts 252 cannot be split over 8 ranks"));
}

TEST(MemoryPlanTest, AGpuHasNoF32CacheAndIsNotOlderThanAmpere) {
  EngineOptions options = gpu_options(8);
  MemoryTarget turing = gpu("h200");
  turing.name = "NVIDIA T4";
  turing.gpu.compute_capability = 75;
  EXPECT_THAT(refusal(options, turing), HasSubstr("NVIDIA T4 has compute capability 7.5"));
  options.kv_cache_dtype = DType::kF32;
  EXPECT_THAT(refusal(options, gpu("h200")), HasSubstr("engine.kv_cache_dtype"));
}

TEST(MemoryPlanTest, Fp8OnAnA100TakesNoMoreMemoryThanItsWeights) {
  const auto a100 = plan_memory(*r1(), gpu_options(16), gpu("a100-80gb"));
  const auto h100 = plan_memory(*r1(), gpu_options(16), gpu("h100-80gb"));
  ASSERT_TRUE(a100.ok() && h100.ok()) << message_of(a100.status());
  EXPECT_EQ((*a100)[MemoryPart::kExperts], (*h100)[MemoryPart::kExperts]);
  EXPECT_LT((*a100)[MemoryPart::kKernelWeights], 10'000'000);
}

TEST(MemoryPlanTest, TheRanksOfAHostShareWhatItCanSpare) {
  EngineOptions options;
  options.world_size = 8;
  options.max_num_batched_tokens = 512;
  const auto fits =
      plan_memory(*r1(), options, {.name = "cpu", .memory_bytes = 1000 * kGi, .gpu = {}});
  ASSERT_TRUE(fits.ok()) << message_of(fits.status());
  EXPECT_EQ(fits->memory_bytes, 125 * kGi);
  EXPECT_LE(fits->cache.bytes, 125 * kGi / 4);
  EXPECT_EQ((*fits)[MemoryPart::kContext] + (*fits)[MemoryPart::kGraphs], 0);
  EXPECT_THAT(refusal(options, {.name = "cpu", .memory_bytes = 600 * kGi, .gpu = {}}),
              AllOf(HasSubstr("its share of what the host can spare is 80.53 GB"),
                    HasSubstr("a host with "),
                    Not(HasSubstr("a GPU like"))));
}

TEST(MemoryPlanTest, AGpuThatSomebodyElseUsesIsRefused) {
  const auto plan = plan_memory(*r1(), gpu_options(8), gpu("h200"));
  ASSERT_TRUE(plan.ok());
  ops::DeviceBytes device{.total = plan->memory_bytes, .free_at_start = plan->memory_bytes - kGi};
  EXPECT_TRUE(check_free_memory(*plan, device, 3).ok());
  device.free_at_start = 60 * kGi;
  EXPECT_THAT(
      message_of(check_free_memory(*plan, device, 3)),
      AllOf(HasSubstr("GPU 3: 64.42 GB of 150.00 GB are free"), HasSubstr("experts 81.76 GB")));
}

// A model that takes a few hundred MB, loaded: what the ranks count is the plan, and what the
// process grew by is it within 3 %.
class RealUseTest : public testing::TestWithParam<int32_t> {};

TEST_P(RealUseTest, IsThePlan) {
  auto config = checkpoint::ModelConfig::load(test::data("../../configs/models/v3-1b-fp8.json"));
  ASSERT_TRUE(config.ok()) << message_of(config.status());
  config->num_hidden_layers = 5;
  config->vocab_size = 4096;
  const auto source = checkpoint::make_dummy_source(*config, 1);
  EngineOptions options;
  options.world_size = GetParam();
  options.num_threads = 2;
  options.kv_cache_bytes = 1 << 20;
  options.max_num_batched_tokens = 8;
  options.max_batch_size = 4;
  int told = 0;
  const auto engine = Engine::create(
      *source,
      options,
      4095,
      [&](double) {
        EXPECT_EQ(told, 1) << "the plan comes before the first weight";
        return absl::OkStatus();
      },
      [&](const MemoryPlan&) { ++told; });
  ASSERT_TRUE(engine.ok()) << message_of(engine.status());
  const MemoryReport report = (*engine)->memory();
  ASSERT_EQ(report.ranks.size(), static_cast<size_t>(options.world_size));
  for (const ops::MemoryUse& use : report.ranks) EXPECT_EQ(use, report.plan.counted());
  EXPECT_EQ(told, 1);
#ifndef R1D_SANITIZED
  const double planned = static_cast<double>(report.plan.expected() * options.world_size);
  EXPECT_GT(planned, 400e6);
  EXPECT_NEAR(static_cast<double>(report.measured_bytes), planned, planned * 0.03);
#endif
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, RealUseTest, testing::Values(1, 2));

TEST(MemoryPlanTest, AnEngineThatDoesNotFitReadsNoWeight) {
  EngineOptions options;
  options.max_num_batched_tokens = 64;
  options.kv_cache_bytes = int64_t{1} << 50;
  bool read = false;
  const auto engine = Engine::create(*r1(), options, 10, [&](double) {
    read = true;
    return absl::OkStatus();
  });
  ASSERT_EQ(engine.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(message_of(engine.status()), HasSubstr("the model does not fit: a rank of 1 takes"));
  EXPECT_FALSE(read);
}

}  // namespace
}  // namespace r1d::engine
