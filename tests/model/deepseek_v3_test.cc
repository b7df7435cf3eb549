// SPDX-License-Identifier: Apache-2.0
#include "r1d/model/deepseek_v3.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/ops/cpu_ops.h"

#include "tests/support/test_data.h"

namespace r1d::model {
namespace {

constexpr uint64_t kSeed = 11;

checkpoint::ModelConfig small_config() {
  const auto config = checkpoint::ModelConfig::load(test::data("golden/v3-ragged-fp8/config.json"));
  EXPECT_TRUE(config.ok()) << message_of(config.status());
  return *config;
}

checkpoint::RankShard shard_of(const checkpoint::ModelConfig& config, int32_t rank, int32_t world) {
  const auto shard =
      checkpoint::make_rank_shard(config, rank, world, checkpoint::ExpertSplit::kTensor);
  EXPECT_TRUE(shard.ok()) << message_of(shard.status());
  return *shard;
}

std::unique_ptr<ops::Ops> one_rank_ops(const checkpoint::ModelConfig& config) {
  auto ops =
      ops::make_local_cpu_ops({make_dims(config, shard_of(config, 0, 1))}, {.max_tokens = 8});
  return std::move(ops.front());
}

absl::Status ignore_progress(int64_t /*bytes*/) {
  return absl::OkStatus();
}

TEST(DeepSeekV3Test, LoadsTheMtpLayerWhenAskedFor) {
  checkpoint::ModelConfig config = small_config();
  config.num_nextn_predict_layers = 1;
  const auto source = checkpoint::make_dummy_source(config, kSeed);
  const auto ops = one_rank_ops(config);
  const auto model = DeepSeekV3::load(
      *source, shard_of(config, 0, 1), *ops, 8, /*with_mtp=*/true, ignore_progress);
  ASSERT_TRUE(model.ok()) << message_of(model.status());
  const ModelWeights& weights = (*model)->weights();
  ASSERT_EQ(weights.mtp.size(), 1U);
  EXPECT_EQ(weights.mtp[0].projection.rows, config.hidden_size);
  EXPECT_EQ(weights.mtp[0].projection.cols, 2 * config.hidden_size);
  EXPECT_EQ(static_cast<int32_t>(weights.mtp[0].layer.moe.experts.size()), config.n_routed_experts);
}

TEST(DeepSeekV3Test, LeavesTheMtpLayerOutUnlessAskedFor) {
  checkpoint::ModelConfig config = small_config();
  config.num_nextn_predict_layers = 1;
  const auto source = checkpoint::make_dummy_source(config, kSeed);
  const auto shard = shard_of(config, 0, 1);
  const auto with = rank_weight_bytes(*source, shard, /*with_mtp=*/true);
  const auto without = rank_weight_bytes(*source, shard, /*with_mtp=*/false);
  ASSERT_TRUE(with.ok() && without.ok());
  EXPECT_GT(*with, *without);
  const auto ops = one_rank_ops(config);
  int64_t loaded = 0;
  const auto model =
      DeepSeekV3::load(*source, shard, *ops, 8, /*with_mtp=*/false, [&](int64_t bytes) {
        loaded += bytes;
        return absl::OkStatus();
      });
  ASSERT_TRUE(model.ok());
  EXPECT_TRUE((*model)->weights().mtp.empty());
  EXPECT_EQ(loaded, *without) << "progress must add up to the announced total";
}

TEST(DeepSeekV3Test, AskingForMtpOfACheckpointWithoutItIsRefused) {
  const checkpoint::ModelConfig config = small_config();
  const auto source = checkpoint::make_dummy_source(config, kSeed);
  const auto ops = one_rank_ops(config);
  const auto model = DeepSeekV3::load(
      *source, shard_of(config, 0, 1), *ops, 8, /*with_mtp=*/true, ignore_progress);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(DeepSeekV3Test, AProgressErrorStopsTheLoad) {
  const checkpoint::ModelConfig config = small_config();
  const auto source = checkpoint::make_dummy_source(config, kSeed);
  const auto ops = one_rank_ops(config);
  int calls = 0;
  const auto stop_at_third = [&](int64_t /*bytes*/) {
    return ++calls < 3 ? absl::OkStatus() : cancelled("enough");
  };
  const auto model =
      DeepSeekV3::load(*source, shard_of(config, 0, 1), *ops, 8, /*with_mtp=*/false, stop_at_third);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 3);
}

// Logits [2, V] of a five-token prompt's last two positions, on `world` ranks.
std::vector<float> forward_on(int32_t world, const checkpoint::WeightSource& source) {
  const checkpoint::ModelConfig& config = source.config();
  const std::vector<TokenId> tokens{5, 9, 1, 44, 300};
  const std::vector<int32_t> positions{0, 1, 2, 3, 4};
  const std::vector<BlockId> table{2, 0};
  const std::vector<ops::SequenceSpan> spans{
      {.query_len = 5, .context_len = 5, .block_table = table}};
  const std::vector<int32_t> rows{3, 4};
  const ops::StepInputs inputs{
      .token_ids = tokens, .positions = positions, .sequences = spans, .logit_rows = rows};
  std::vector<ops::ModelDims> dims;
  for (int32_t r = 0; r < world; ++r) dims.push_back(make_dims(config, shard_of(config, r, world)));
  auto ops = ops::make_local_cpu_ops(dims, {.max_tokens = 8});
  std::vector<float> logits(2 * static_cast<size_t>(config.vocab_size));
  const auto run_rank = [&](int32_t r) {
    ops::Ops& own = *ops[static_cast<size_t>(r)];
    const auto model =
        DeepSeekV3::load(source, shard_of(config, r, world), own, 8, false, ignore_progress);
    ASSERT_TRUE(model.ok()) << message_of(model.status());
    std::vector<std::unique_ptr<ops::Buffer>> memory;
    std::vector<ops::LatentPages> pages;
    for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
      const auto width = config.latent_width();
      memory.push_back(*own.allocate(static_cast<size_t>(3 * 4 * width) * sizeof(float),
                                     ops::MemoryKind::kLatentCache,
                                     "pages"));
      pages.push_back(
          {.data = memory.back()->data(), .num_blocks = 3, .block_size = 4, .width = width});
    }
    std::atomic<uint64_t> layers_done{0};
    const absl::Status status =
        (*model)->forward(inputs, pages, r == 0 ? logits.data() : nullptr, layers_done);
    EXPECT_TRUE(status.ok()) << message_of(status);
    EXPECT_EQ(layers_done.load(), static_cast<uint64_t>(config.num_hidden_layers));
  };
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < world; ++r) threads.emplace_back(run_rank, r);
  for (std::thread& thread : threads) thread.join();
  return logits;
}

TEST(DeepSeekV3Test, RanksTogetherGiveTheLogitsOfOne) {
  const auto source = checkpoint::make_dummy_source(small_config(), kSeed);
  const std::vector<float> alone = forward_on(1, *source);
  for (const int32_t world : {2, 4}) {
    const std::vector<float> together = forward_on(world, *source);
    double difference = 0;
    double total = 0;
    for (size_t i = 0; i < alone.size(); ++i) {
      ASSERT_TRUE(std::isfinite(together[i])) << "logit " << i;
      difference += std::pow(static_cast<double>(together[i]) - alone[i], 2);
      total += std::pow(static_cast<double>(alone[i]), 2);
    }
    EXPECT_LT(std::sqrt(difference / total), 1e-5) << world << " ranks";
  }
}

}  // namespace
}  // namespace r1d::model
