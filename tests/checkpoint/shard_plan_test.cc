// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/shard_plan.h"

#include <map>
#include <string>

#include <gtest/gtest.h>

#include "r1d/base/status.h"

#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

ModelConfig r1_config() {
  return ModelConfig::load(test::data("configs/deepseek-r1.json")).value();
}

std::map<std::string, TensorSpec> by_name(const ModelConfig& config, bool with_mtp) {
  std::map<std::string, TensorSpec> specs;
  for (const TensorSpec& spec : expected_tensors(config, with_mtp)) specs[spec.name] = spec;
  return specs;
}

RankShard shard(const ModelConfig& config, int32_t rank, int32_t world_size, ExpertSplit split) {
  return make_rank_shard(config, rank, world_size, split).value();
}

void expect_slice(const TensorSlice& slice, Range rows, Range cols) {
  EXPECT_EQ(slice.rows, rows) << slice.rows.begin << ".." << slice.rows.end;
  EXPECT_EQ(slice.cols, cols) << slice.cols.begin << ".." << slice.cols.end;
}

TEST(ExpectedTensorsTest, ListsR1WithoutAndWithMtp) {
  // 46,197 weights of the main model; the scales bring it to the 90,427 of the published index.
  const auto main = by_name(r1_config(), false);
  int64_t num_scales = 0;
  for (const auto& [name, spec] : main) num_scales += spec.quantizable ? 1 : 0;
  EXPECT_EQ(static_cast<int64_t>(main.size()) + num_scales, 90'427);

  const auto all = by_name(r1_config(), true);
  for (const auto& [name, spec] : all) num_scales += spec.quantizable && spec.layer == 61 ? 1 : 0;
  EXPECT_EQ(static_cast<int64_t>(all.size()) + num_scales, 91'991);
  EXPECT_TRUE(all.at("model.layers.61.embed_tokens.weight").duplicate);
  EXPECT_TRUE(all.at("model.layers.61.shared_head.head.weight").duplicate);
  const TensorSpec& projection = all.at("model.layers.61.eh_proj.weight");
  EXPECT_EQ(projection.cols, 14336);
  EXPECT_FALSE(projection.quantizable);
}

TEST(ExpectedTensorsTest, StartsWithTheEmbeddingAndKeepsLayersInOrder) {
  const auto specs = expected_tensors(r1_config(), true);
  EXPECT_EQ(specs.front().name, "model.embed_tokens.weight");
  int32_t last_layer = -1;
  for (const TensorSpec& spec : specs) {
    if (spec.layer < 0) continue;
    EXPECT_GE(spec.layer, last_layer);
    last_layer = spec.layer;
  }
  EXPECT_EQ(last_layer, 61);
}

TEST(ExpectedTensorsTest, HasOneQueryProjectionWithoutAQueryRank) {
  test::Json json = test::small_config(false);
  json["q_lora_rank"] = nullptr;
  const auto specs = by_name(ModelConfig::parse(json.dump()).value(), false);
  EXPECT_EQ(specs.at("model.layers.0.self_attn.q_proj.weight").rows, 4 * 24);
  EXPECT_FALSE(specs.contains("model.layers.0.self_attn.q_a_proj.weight"));
}

TEST(ExpectedTensorsTest, HasNoHeadWithTiedEmbeddings) {
  test::Json json = test::small_config(false);
  json["tie_word_embeddings"] = true;
  EXPECT_FALSE(by_name(ModelConfig::parse(json.dump()).value(), false).contains("lm_head.weight"));
}

// The table "Tensor parallel, 8 ranks" of R1: rank 3's part of each kind.
TEST(SliceOfTest, CutsR1OverEightRanks) {
  const auto specs = by_name(r1_config(), false);
  const RankShard rank3 = shard(r1_config(), 3, 8, ExpertSplit::kTensor);
  const auto slice = [&](const std::string& name) { return slice_of(specs.at(name), rank3); };
  const std::string layer = "model.layers.5.";
  expect_slice(slice("model.embed_tokens.weight"), {48480, 64640}, {0, 7168});
  expect_slice(slice("lm_head.weight"), {48480, 64640}, {0, 7168});
  expect_slice(slice("model.norm.weight"), {0, 7168}, {0, 1});
  expect_slice(slice(layer + "self_attn.q_a_proj.weight"), {0, 1536}, {0, 7168});
  expect_slice(slice(layer + "self_attn.q_b_proj.weight"), {9216, 12288}, {0, 1536});
  expect_slice(slice(layer + "self_attn.kv_a_proj_with_mqa.weight"), {0, 576}, {0, 7168});
  expect_slice(slice(layer + "self_attn.kv_b_proj.weight"), {12288, 16384}, {0, 512});
  expect_slice(slice(layer + "self_attn.o_proj.weight"), {0, 7168}, {6144, 8192});
  expect_slice(slice("model.layers.0.mlp.gate_proj.weight"), {6912, 9216}, {0, 7168});
  expect_slice(slice("model.layers.0.mlp.down_proj.weight"), {0, 7168}, {6912, 9216});
  expect_slice(slice(layer + "mlp.gate.weight"), {0, 256}, {0, 7168});
  expect_slice(slice(layer + "mlp.gate.e_score_correction_bias"), {0, 256}, {0, 1});
  expect_slice(slice(layer + "mlp.experts.200.up_proj.weight"), {768, 1024}, {0, 7168});
  expect_slice(slice(layer + "mlp.experts.200.down_proj.weight"), {0, 7168}, {768, 1024});
  expect_slice(slice(layer + "mlp.shared_experts.gate_proj.weight"), {768, 1024}, {0, 7168});
}

TEST(SliceOfTest, GivesWholeExpertsToOneRankEach) {
  const auto specs = by_name(r1_config(), false);
  const RankShard rank3 = shard(r1_config(), 3, 8, ExpertSplit::kExpert);
  EXPECT_EQ(rank3.experts, (Range{96, 128}));
  const TensorSpec& first = specs.at("model.layers.5.mlp.experts.96.down_proj.weight");
  expect_slice(slice_of(first, rank3), {0, 7168}, {0, 2048});
  EXPECT_TRUE(slice_of(specs.at("model.layers.5.mlp.experts.95.up_proj.weight"), rank3).empty());
  EXPECT_TRUE(slice_of(specs.at("model.layers.5.mlp.experts.128.up_proj.weight"), rank3).empty());
  // The shared expert is cut by its width all the same.
  EXPECT_EQ(rank3.shared_intermediate, (Range{768, 1024}));
}

TEST(ScaleSliceOfTest, KeepsTheWholeBlockThatASliceStartsIn) {
  const QuantizationConfig blocks;
  // R1 over 32 ranks: 64 rows of an expert start in the middle of a block.
  const TensorSlice odd{.rows = {192, 256}, .cols = {0, 7168}};
  expect_slice(scale_slice_of(odd, blocks), {1, 2}, {0, 56});
  const TensorSlice across{.rows = {100, 300}, .cols = {127, 129}};
  expect_slice(scale_slice_of(across, blocks), {0, 3}, {0, 2});
  const TensorSlice ragged{.rows = {0, 576}, .cols = {0, 7168}};
  expect_slice(scale_slice_of(ragged, blocks), {0, 5}, {0, 56});
  EXPECT_TRUE(scale_slice_of({}, blocks).empty());
}

// Every element of every tensor has exactly one owner, or all ranks as owners where it is
// replicated.
void expect_cover(const ModelConfig& config, int32_t world_size, ExpertSplit split) {
  for (const TensorSpec& spec : expected_tensors(config, true)) {
    int64_t values = 0;
    int64_t next = 0;
    for (int32_t rank = 0; rank < world_size; ++rank) {
      const TensorSlice slice = slice_of(spec, shard(config, rank, world_size, split));
      if (slice.empty()) continue;
      const Range& cut = spec.split_cols ? slice.cols : slice.rows;
      if (spec.split != Split::kReplicate &&
          cut.size() < (spec.split_cols ? spec.cols : spec.rows)) {
        EXPECT_EQ(cut.begin, next) << spec.name;
        next = cut.end;
      }
      values += slice.rows.size() * slice.cols.size();
    }
    const int64_t copies = spec.split == Split::kReplicate ? world_size : 1;
    EXPECT_EQ(values, copies * spec.rows * spec.cols) << spec.name << ", world size " << world_size;
  }
}

TEST(SliceOfTest, CoversEveryTensorOnce) {
  for (const char* golden : {"v3-generic-bf16", "v3-ragged-fp8", "v3-r1heads-fp8"}) {
    const auto config = ModelConfig::load(test::data("golden/") + golden + "/config.json").value();
    for (const int32_t world_size : {1, 2, 4})
      expect_cover(config, world_size, ExpertSplit::kTensor);
    expect_cover(config, 2, ExpertSplit::kExpert);
  }
}

// ---- what is refused ----

struct BadSplit {
  const char* name;
  const char* field;
  int64_t value;
  int32_t rank;
  int32_t world_size;
  ExpertSplit split;
  const char* message;
};
std::string name_of_split(const testing::TestParamInfo<BadSplit>& info) {
  return info.param.name;
}
void PrintTo(const BadSplit& bad, std::ostream* out) {
  *out << bad.name;
}

class BadSplitTest : public testing::TestWithParam<BadSplit> {};

TEST_P(BadSplitTest, NamesFieldValueAndWorldSize) {
  const BadSplit& bad = GetParam();
  test::Json json = test::small_config(true);
  json[bad.field] = bad.value;
  const ModelConfig config = ModelConfig::parse(json.dump()).value();
  const auto made = make_rank_shard(config, bad.rank, bad.world_size, bad.split);
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(message_of(made.status()), bad.message);
}

const BadSplit kBadSplits[] = {
    {"Heads",
     "num_attention_heads",
     4,
     0,
     8,
     ExpertSplit::kTensor,
     "num_attention_heads 4 cannot be split over 8 ranks: 4 is not a multiple of 8"},
    {"Dense",
     "intermediate_size",
     190,
     0,
     4,
     ExpertSplit::kTensor,
     "intermediate_size 190 cannot be split over 4 ranks: 190 is not a multiple of 4"},
    {"ExpertWidth",
     "moe_intermediate_size",
     50,
     0,
     4,
     ExpertSplit::kTensor,
     "moe_intermediate_size 50 cannot be split over 4 ranks: 50 is not a multiple of 4"},
    {"WholeExperts",
     "n_routed_experts",
     6,
     0,
     4,
     ExpertSplit::kExpert,
     "n_routed_experts 6 cannot be split over 4 ranks: 6 is not a multiple of 4"},
    {"SharedWidth",
     "moe_intermediate_size",
     50,
     0,
     4,
     ExpertSplit::kExpert,
     "n_shared_experts * moe_intermediate_size 50 cannot be split over 4 ranks: 50 is not a "
     "multiple of 4"},
    {"Vocabulary",
     "vocab_size",
     66,
     0,
     4,
     ExpertSplit::kTensor,
     "vocab_size 66 cannot be split over 4 ranks: 66 is not a multiple of 4"},
    {"NoRanks",
     "vocab_size",
     64,
     0,
     0,
     ExpertSplit::kTensor,
     "world_size: expected 1 to 64 ranks, found 0"},
    {"TooManyRanks",
     "vocab_size",
     64,
     0,
     65,
     ExpertSplit::kTensor,
     "world_size: expected 1 to 64 ranks, found 65"},
    {"RankTooLarge",
     "vocab_size",
     64,
     4,
     4,
     ExpertSplit::kTensor,
     "rank: expected 0 to 3, found 4"},
    {"RankNegative",
     "vocab_size",
     64,
     -1,
     4,
     ExpertSplit::kTensor,
     "rank: expected 0 to 3, found -1"},
};
INSTANTIATE_TEST_SUITE_P(AllSplits, BadSplitTest, testing::ValuesIn(kBadSplits), name_of_split);

TEST(MakeRankShardTest, DoesNotCutWhatTheModelDoesNotHave) {
  test::Json json = test::small_config(false);
  json["first_k_dense_replace"] = 0;
  json["intermediate_size"] = 191;  // no dense layer uses it
  json["n_shared_experts"] = 0;
  const auto made =
      make_rank_shard(ModelConfig::parse(json.dump()).value(), 0, 4, ExpertSplit::kTensor);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->dense_intermediate.size(), 0);
  EXPECT_EQ(made->shared_intermediate.size(), 0);
}

TEST(MakeRankShardTest, TakesWorldSizesThatAreNoPowerOfTwo) {
  test::Json json = test::small_config(false);
  for (const char* field : {"num_attention_heads", "vocab_size"}) json[field] = 3 * 4;
  const auto made =
      make_rank_shard(ModelConfig::parse(json.dump()).value(), 2, 3, ExpertSplit::kTensor);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->expert_intermediate, (Range{32, 48}));
}

}  // namespace
}  // namespace r1d::checkpoint
