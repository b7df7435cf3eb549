// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/model_config.h"

#include <vector>

#include <gtest/gtest.h>

#include "tests/support/checkpoint_writer.h"
#include "tests/support/test_data.h"

namespace r1d::checkpoint {
namespace {

using test::Json;

TEST(ModelConfigTest, ReadsEveryFieldOfR1) {
  const auto config = ModelConfig::load(test::data("configs/deepseek-r1.json"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(config->model_type, "deepseek_v3");
  EXPECT_EQ(config->vocab_size, 129280);
  EXPECT_EQ(config->hidden_size, 7168);
  EXPECT_EQ(config->intermediate_size, 18432);
  EXPECT_EQ(config->moe_intermediate_size, 2048);
  EXPECT_EQ(config->num_hidden_layers, 61);
  EXPECT_EQ(config->num_nextn_predict_layers, 1);
  EXPECT_EQ(config->first_k_dense_replace, 3);
  EXPECT_EQ(config->moe_layer_freq, 1);
  EXPECT_EQ(config->num_attention_heads, 128);
  EXPECT_EQ(config->q_lora_rank, 1536);
  EXPECT_EQ(config->kv_lora_rank, 512);
  EXPECT_EQ(config->qk_nope_head_dim, 128);
  EXPECT_EQ(config->qk_rope_head_dim, 64);
  EXPECT_EQ(config->v_head_dim, 128);
  EXPECT_EQ(config->qk_head_dim(), 192);
  EXPECT_EQ(config->latent_width(), 576);
  EXPECT_EQ(config->n_routed_experts, 256);
  EXPECT_EQ(config->n_shared_experts, 1);
  EXPECT_EQ(config->num_experts_per_tok, 8);
  EXPECT_EQ(config->n_group, 8);
  EXPECT_EQ(config->topk_group, 4);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->routed_scaling_factor, 2.5);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_TRUE(config->rope_interleave);
  ASSERT_TRUE(config->yarn);
  EXPECT_EQ(config->yarn->factor, 40);
  EXPECT_EQ(config->yarn->original_max_position_embeddings, 4096);
  EXPECT_EQ(config->yarn->beta_fast, 32);
  EXPECT_EQ(config->yarn->beta_slow, 1);
  EXPECT_EQ(config->yarn->mscale, 1);
  EXPECT_EQ(config->yarn->mscale_all_dim, 1);
  EXPECT_EQ(config->max_position_embeddings, 163840);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_EQ(config->eos_token_ids, std::vector<TokenId>{1});
  ASSERT_TRUE(config->quantization);
  EXPECT_EQ(config->quantization->block_rows, 128);
  EXPECT_EQ(config->quantization->block_cols, 128);
  EXPECT_FALSE(config->is_moe_layer(2));
  EXPECT_TRUE(config->is_moe_layer(3));
  EXPECT_TRUE(config->is_moe_layer(61));
}

ModelConfig parse_ok(const Json& json) {
  auto config = ModelConfig::parse(json.dump());
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig{};
}

TEST(ModelConfigTest, TakesNullForNoQueryRankNoScalingAndNoExperts) {
  Json json = test::small_config(false);
  json["q_lora_rank"] = nullptr;
  json["rope_scaling"] = nullptr;
  json["n_routed_experts"] = nullptr;
  json["quantization_config"] = nullptr;
  json["eos_token_id"] = nullptr;
  const ModelConfig config = parse_ok(json);
  EXPECT_EQ(config.q_lora_rank, 0);
  EXPECT_FALSE(config.yarn);
  EXPECT_FALSE(config.is_moe_layer(1));
  EXPECT_FALSE(config.quantization);
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(ModelConfigTest, TakesAListOfEndTokens) {
  Json json = test::small_config(false);
  json["eos_token_id"] = {1, 5};
  EXPECT_EQ(parse_ok(json).eos_token_ids, (std::vector<TokenId>{1, 5}));
}

TEST(ModelConfigTest, TakesBothSpellingsOfTheRopeType) {
  Json json = test::small_config(false);
  json["rope_scaling"].erase("type");
  json["rope_scaling"]["rope_type"] = "yarn";
  EXPECT_TRUE(parse_ok(json).yarn);
  json["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_FALSE(parse_ok(json).yarn);
}

TEST(ModelConfigTest, TakesRopeParametersInPlaceOfRopeScaling) {
  Json json = test::small_config(false);
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["rope_theta"] = 50000.0;
  json.erase("rope_scaling");
  json.erase("rope_theta");
  const ModelConfig config = parse_ok(json);
  EXPECT_EQ(config.rope_theta, 50000);
  ASSERT_TRUE(config.yarn);
  EXPECT_EQ(config.yarn->factor, 40);
}

TEST(ModelConfigTest, LeavesMscaleOfTheSoftmaxOutWhenAbsent) {
  Json json = test::small_config(false);
  json["rope_scaling"].erase("mscale_all_dim");
  EXPECT_EQ(parse_ok(json).yarn->mscale_all_dim, 0);
}

TEST(ModelConfigTest, TakesTheScaleFormatOfV31) {
  Json json = test::small_config(true);
  json["quantization_config"]["scale_fmt"] = "ue8m0";
  EXPECT_TRUE(parse_ok(json).quantization);
}

TEST(ModelConfigTest, TakesTiedEmbeddingsAndUninterleavedRope) {
  Json json = test::small_config(false);
  json["tie_word_embeddings"] = true;
  json["rope_interleave"] = false;
  const ModelConfig config = parse_ok(json);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.rope_interleave);
}

}  // namespace
}  // namespace r1d::checkpoint
