// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/engine/engine.h"

#include "engine/host_memory.h"
#include "tests/support/test_data.h"

namespace r1d::engine {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

checkpoint::ModelConfig r1_config() {
  const auto config = checkpoint::ModelConfig::load(test::data("configs/deepseek-r1.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  return *config;
}

EngineOptions with_cache(int64_t bytes) {
  EngineOptions options;
  options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_bytes = bytes;
  return options;
}

TEST(CachePlanTest, R1TakesSeventyThousandBytesAToken) {
  const auto plan = plan_cache(r1_config(), with_cache(30 * kGiB), 0);
  ASSERT_TRUE(plan.ok()) << message_of(plan.status());
  EXPECT_EQ(plan->bytes_per_token, 70272);
  EXPECT_EQ(plan->num_blocks, 30 * kGiB / (70272 * 64));
  EXPECT_EQ(plan->bytes, int64_t{plan->num_blocks} * 70272 * 64);
  EXPECT_EQ(plan->max_model_len, 163840);
}

TEST(CachePlanTest, Fp8TakesFortyThousandBytesAToken) {
  EngineOptions options = with_cache(30 * kGiB);
  options.kv_cache_dtype = DType::kF8E4M3;
  const auto plan = plan_cache(r1_config(), options, 0);
  ASSERT_TRUE(plan.ok()) << message_of(plan.status());
  EXPECT_EQ(plan->bytes_per_token, 61 * 656);
  EXPECT_EQ(plan->num_blocks, 30 * kGiB / (int64_t{61} * 656 * 64));
}

TEST(CachePlanTest, Fp8RefusesLatentsItCannotLayOut) {
  EngineOptions options = with_cache(30 * kGiB);
  options.kv_cache_dtype = DType::kF8E4M3;
  checkpoint::ModelConfig config = r1_config();
  config.kv_lora_rank = 510;
  EXPECT_NE(message_of(plan_cache(config, options, 0).status()).find("kv_lora_rank"),
            std::string::npos);
}

TEST(CachePlanTest, MaxModelLenShrinksToWhatTheCacheHolds) {
  const auto plan = plan_cache(r1_config(), with_cache(70272 * 64 * 100), 0);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->max_model_len, 6400);
}

TEST(CachePlanTest, AGivenLengthThatDoesNotFitIsRefusedWithBothKeys) {
  EngineOptions options = with_cache(70272 * 64 * 100);
  options.max_model_len = 6401;
  const auto plan = plan_cache(r1_config(), options, 0);
  ASSERT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(message_of(plan.status()).find("scheduler.max_model_len 6401 needs"),
            std::string::npos);
  EXPECT_NE(message_of(plan.status()).find("engine.kv_cache_memory"), std::string::npos);
}

TEST(CachePlanTest, ALengthBeyondTheModelsIsRefused) {
  EngineOptions options = with_cache(kGiB);
  options.max_model_len = 200000;
  EXPECT_NE(message_of(plan_cache(r1_config(), options, 0).status())
                .find("max_position_embeddings 163840"),
            std::string::npos);
}

TEST(CachePlanTest, ACacheSmallerThanABlockIsRefused) {
  EXPECT_NE(message_of(plan_cache(r1_config(), with_cache(1000), 0).status()).find("no block"),
            std::string::npos);
}

TEST(CachePlanTest, TheDefaultIsTheRanksBudget) {
  const auto plan = plan_cache(r1_config(), with_cache(0), 2 * kGiB);
  ASSERT_TRUE(plan.ok());
  EXPECT_LE(plan->bytes, 2 * kGiB);
  EXPECT_GT(plan->bytes, 2 * kGiB - 70272 * 64);
}

TEST(CachePlanTest, TheDefaultTakesNoMoreThanAFullBatchCanUse) {
  EngineOptions options = with_cache(0);
  options.max_model_len = 128;
  options.max_batch_size = 4;
  const auto plan = plan_cache(r1_config(), options, 1000 * kGiB);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->num_blocks, 8);
}

class HostMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/host_memory";
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_ + "/proc");
    std::filesystem::create_directories(root_ + "/sys/fs/cgroup");
    write("/proc/meminfo", "MemTotal:  100 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\n");
  }
  void write(const std::string& path, const std::string& text) {
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(HostMemoryTest, IsWhatTheKernelCallsAvailable) {
  EXPECT_EQ(spare_host_bytes(root_), 2048 * 1024);
}

TEST_F(HostMemoryTest, IsNoMoreThanTheCgroupLeaves) {
  write("/sys/fs/cgroup/memory.max", "1000000\n");
  write("/sys/fs/cgroup/memory.current", "400000\n");
  EXPECT_EQ(spare_host_bytes(root_), 600000);
}

TEST_F(HostMemoryTest, ACgroupWithoutALimitDoesNotCount) {
  write("/sys/fs/cgroup/memory.max", "max\n");
  write("/sys/fs/cgroup/memory.current", "400000\n");
  EXPECT_EQ(spare_host_bytes(root_), 2048 * 1024);
}

}  // namespace
}  // namespace r1d::engine
