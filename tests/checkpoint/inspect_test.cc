// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "checkpoint/summary.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

using testing::HasSubstr;

ModelConfig r1() {
  return ModelConfig::load(test::data("configs/deepseek-r1.json")).value();
}

Summary summary_of(const ModelConfig& config, int32_t world_size, ExpertSplit split) {
  return summarize(*make_dummy_source(config, 0), world_size, split).value();
}

// The numbers are the published ones, or counted from the published list of tensors.
TEST(SummaryTest, CountsR1) {
  const Summary summary = summary_of(r1(), 1, ExpertSplit::kTensor);
  EXPECT_EQ(summary.all.num_tensors, 91'991);
  EXPECT_EQ(summary.all.bytes, 688'574'839'360);
  EXPECT_EQ(summary.main.num_tensors, 90'427);
  EXPECT_EQ(summary.main.bytes, 673'150'611'808);
  EXPECT_NEAR(static_cast<double>(summary.main_parameters), 671.03e9, 0.005e9);
  EXPECT_NEAR(static_cast<double>(summary.active_parameters), 37.55e9, 0.005e9);
  // The 11.5 B of the model card leave eh_proj out.
  EXPECT_NEAR(static_cast<double>(summary.mtp_parameters - 7168 * 14336), 11.5e9, 0.05e9);
  EXPECT_EQ(summary.rank_main_bytes, 673'150'611'808);
  EXPECT_EQ(summary.kv_values_per_token * 2, 70'272);
  EXPECT_EQ(summary.by_dtype[static_cast<size_t>(DType::kF8E4M3)].num_tensors +
                summary.by_dtype[static_cast<size_t>(DType::kBF16)].num_tensors +
                summary.by_dtype[static_cast<size_t>(DType::kF32)].num_tensors,
            91'991);
}

TEST(SummaryTest, CountsOnlyTheCopiesThatAreThere) {
  test::TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(true), true, 1);
  const auto summary = [&] {
    const test::TempDir dir;
    checkpoint.write(dir);
    return summarize(**open_hugging_face(dir.path()), 1, ExpertSplit::kTensor).value();
  };
  const Summary whole = summary();
  checkpoint.remove("model.layers.2.embed_tokens.weight");
  checkpoint.remove("model.layers.2.shared_head.head.weight");
  const Summary without = summary();
  EXPECT_EQ(without.all.num_tensors, whole.all.num_tensors - 2);
  EXPECT_EQ(without.mtp_parameters, whole.mtp_parameters);
  EXPECT_EQ(without.rank_mtp_bytes, whole.rank_mtp_bytes);
}

TEST(SummaryTest, GivesTheBytesPerRankOfR1) {
  for (const ExpertSplit split : {ExpertSplit::kTensor, ExpertSplit::kExpert}) {
    const Summary eight = summary_of(r1(), 8, split);
    EXPECT_NEAR(static_cast<double>(eight.rank_main_bytes), 85.14e9, 0.005e9);
    EXPECT_NEAR(
        static_cast<double>(eight.rank_main_bytes + eight.rank_mtp_bytes), 86.80e9, 0.005e9);
  }
  const Summary sixteen = summary_of(r1(), 16, ExpertSplit::kTensor);
  EXPECT_NEAR(static_cast<double>(sixteen.rank_main_bytes), 43.14e9, 0.005e9);
}

TEST(InspectTest, SaysWhatTheConfigAloneImplies) {
  const test::TempDir dir;
  std::filesystem::copy_file(test::data("configs/deepseek-r1.json"), dir.path() + "/config.json");
  const auto report = inspect_report(dir.path(), 8, ExpertSplit::kTensor);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(*report,
            R"(source            config.json alone: no weights here, sizes are what it implies
architecture      DeepseekV3ForCausalLM (deepseek_v3)
layers            61: 3 dense, 58 MoE
hidden size       7168
vocabulary        129280 rows
heads             128: 128 + 64 rotary values of q and k, 128 of v
latent ranks      q 1536, kv 512
experts           256 routed in 8 groups, 8 a token from 4 groups; 1 shared
context           163840 tokens (YaRN, 40 times 4096)
parameters        671.03 B, 37.55 B active a token
MTP               1 layer, 11.61 B parameters more
tensors           91,991, 688.57 GB (641.29 GiB): 688,574,839,360 bytes
  F8_E4M3         45,808, 680.57 GB (633.83 GiB)
  BF16            316, 7.84 GB (7.30 GiB)
  F32             45,867, 166.22 MB (158.52 MiB)
per rank          85.14 GB (79.29 GiB) of weights, world size 8, a slice of every expert
  with MTP        86.80 GB (80.84 GiB)
KV cache          70,272 bytes a token in BF16, 140,544 in F32, on every rank
)");
}

TEST(InspectTest, ReportsTheWeightsThatAreThere) {
  const auto report = inspect_report(test::data("golden/v3-ragged-fp8"), 2, ExpertSplit::kExpert);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(*report, HasSubstr("source            weights, checked against config.json\n"));
  EXPECT_THAT(*report, HasSubstr("MTP               none\n"));
  EXPECT_THAT(*report, HasSubstr("4,502,148 bytes\n"));  // total_size of the index
  EXPECT_THAT(*report, HasSubstr("world size 2, whole experts\n"));
  // 3 layers of 64 + 16 values.
  EXPECT_THAT(*report, HasSubstr("480 bytes a token in BF16, 960 in F32"));
}

TEST(InspectTest, RefusesAWorldSizeThatDoesNotDivide) {
  const auto report = inspect_report(test::data("golden/v3-ragged-fp8"), 8, ExpertSplit::kTensor);
  EXPECT_EQ(message_of(report.status()),
            "num_attention_heads 4 cannot be split over 8 ranks: 4 is not a multiple of 8");
}

TEST(InspectTest, DoesNotTakeABrokenCheckpointForAConfigAlone) {
  const test::TempDir dir;
  test::TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(true), false, 2);
  checkpoint.shards.erase("model-00002-of-000002.safetensors");
  checkpoint.write(dir);
  EXPECT_EQ(message_of(inspect_report(dir.path(), 1, ExpertSplit::kTensor).status()),
            "model.safetensors.index.json: shard model-00002-of-000002.safetensors does not exist");
}

TEST(InspectTest, NamesAnAbsentDirectory) {
  EXPECT_EQ(message_of(inspect_report("/nonexistent", 1, ExpertSplit::kTensor).status()),
            "/nonexistent/config.json: No such file or directory");
}

}  // namespace
}  // namespace r1d::checkpoint
