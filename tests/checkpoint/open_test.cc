// SPDX-License-Identifier: Apache-2.0
// open_hugging_face() on good checkpoints: it reads what was written.
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"

#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

using test::Json;
using test::TempDir;
using test::TensorData;
using test::TestCheckpoint;

constexpr const char* kFirstShard = "model-00001-of-000002.safetensors";
constexpr const char* kOneExpert = "model.layers.1.mlp.experts.3.down_proj.weight";

class GoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, Opens) {
  const auto source = open_hugging_face(test::data("golden/") + GetParam());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_FALSE((*source)->has_mtp());
  for (const TensorSpec& spec : expected_tensors((*source)->config(), false)) {
    const auto stored = (*source)->find(spec.name);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->rows, spec.rows);
    EXPECT_EQ(stored->cols, spec.cols);
    const bool is_fp8 = spec.quantizable && (*source)->config().quantization.has_value();
    EXPECT_EQ(stored->dtype == DType::kF8E4M3, is_fp8) << spec.name;
    EXPECT_EQ((*source)->find(scale_name(spec.name)).ok(), is_fp8) << spec.name;
  }
}
INSTANTIATE_TEST_SUITE_P(
    AllCheckpoints,
    GoldenTest,
    testing::Values("v3-generic-bf16", "v3-noqlora-bf16", "v3-r1heads-fp8", "v3-ragged-fp8"));

void expect_same_weights(const WeightSource& source, const TestCheckpoint& checkpoint) {
  for (const auto& [file, tensors] : checkpoint.shards) {
    for (const auto& [name, data] : tensors) {
      const TensorData read = test::read_whole(source, name, data.shape.size() == 1);
      EXPECT_EQ(read.dtype, data.dtype) << name;
      EXPECT_EQ(read.shape, data.shape) << name;
      EXPECT_EQ(read.bytes, data.bytes) << name;
    }
  }
}

TEST(OpenTest, ReadsWhatWasWrittenFromShardsAndFromASingleFile) {
  for (const int num_shards : {0, 1, 2, 5}) {
    const TestCheckpoint checkpoint =
        test::make_checkpoint(test::small_config(true), true, num_shards);
    const TempDir dir;
    checkpoint.write(dir);
    const auto source = open_hugging_face(dir.path());
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_TRUE((*source)->has_mtp());
    expect_same_weights(**source, checkpoint);
  }
}

TEST(OpenTest, TakesABf16CastThatStillCarriesItsQuantizationConfig) {
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(false), true, 2);
  checkpoint.config = test::small_config(true);
  const auto source = test::open(checkpoint);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->find(kOneExpert)->dtype, DType::kBF16);
}

TEST(OpenTest, TakesMissingMtpLayersAsNone) {
  const auto source = test::open(test::make_checkpoint(test::small_config(true), false, 2));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_FALSE((*source)->has_mtp());
  EXPECT_EQ((*source)->find("model.layers.2.eh_proj.weight").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(OpenTest, TakesMtpLayersWithoutTheirCopiesOfEmbeddingAndHead) {
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(true), true, 2);
  checkpoint.remove("model.layers.2.embed_tokens.weight");
  checkpoint.remove("model.layers.2.shared_head.head.weight");
  const auto source = test::open(checkpoint);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->has_mtp());
}

TEST(OpenTest, TakesF32WeightsAndABf16RouterBias) {
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(false), false, 2);
  test::reshape(checkpoint.tensor("model.norm.weight"), {160}, 4);
  checkpoint.tensor("model.norm.weight").dtype = "F32";
  TensorData& bias = checkpoint.tensor("model.layers.1.mlp.gate.e_score_correction_bias");
  test::reshape(bias, {4}, 2);
  bias.dtype = "BF16";
  const auto source = test::open(checkpoint);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->find("model.norm.weight")->dtype, DType::kF32);
}

TEST(OpenTest, IgnoresRotaryFrequenciesOfAnyDtypeInTheIndexOrNot) {
  const std::string name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(false), false, 2);
  checkpoint.shards[kFirstShard][name] = {"F64", {1}, "12345678"};
  EXPECT_TRUE(test::open(checkpoint).ok());
  checkpoint.index["weight_map"][name] = kFirstShard;
  EXPECT_TRUE(test::open(checkpoint).ok());
}

TEST(OpenTest, TakesTiedEmbeddingsWithoutAHead) {
  Json config = test::small_config(false);
  config["tie_word_embeddings"] = true;
  EXPECT_TRUE(test::open(test::make_checkpoint(config, true, 2)).ok());
}

TEST(OpenTest, FollowsSymbolicLinksAsAHuggingFaceCacheHasThem) {
  const TempDir blobs;
  const TempDir dir;
  test::make_checkpoint(test::small_config(false), false, 2).write(blobs);
  for (const auto& file : std::filesystem::directory_iterator(blobs.path())) {
    std::filesystem::create_symlink(file.path(),
                                    std::filesystem::path(dir.path()) / file.path().filename());
  }
  EXPECT_TRUE(open_hugging_face(dir.path()).ok());
}

TEST(OpenTest, NamesFileAndTensorWhenAShardShrinksWhileItIsRead) {
  const TempDir dir;
  test::make_checkpoint(test::small_config(false), false, 0).write(dir);
  const auto source = open_hugging_face(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  std::filesystem::resize_file(dir.path() + "/model.safetensors", 1000);
  std::vector<std::byte> bytes(64 * 160 * 2);
  const absl::Status status =
      (*source)->read("lm_head.weight", {.rows = {0, 64}, .cols = {0, 160}}, bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(message_of(status),
              testing::StartsWith("model.safetensors: tensor lm_head.weight: file ends at byte"));
}

TEST(OpenTest, ServesRanksInParallel) {
  const TempDir dir;
  const TestCheckpoint checkpoint = test::make_checkpoint(test::small_config(true), true, 3);
  checkpoint.write(dir);
  const auto source = open_hugging_face(dir.path());
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<std::jthread> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&] { expect_same_weights(**source, checkpoint); });
  }
}

}  // namespace
}  // namespace r1d::checkpoint
