// SPDX-License-Identifier: Apache-2.0
// What ModelConfig refuses, and with which words.
#include <optional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/status.h"
#include "r1d/checkpoint/model_config.h"

#include "tests/support/checkpoint_writer.h"

namespace r1d::checkpoint {
namespace {

using test::Json;

struct BadField {
  const char* pointer;        // JSON pointer of the field to set
  std::optional<Json> value;  // nullopt: remove it
  const char* message;
};

void PrintTo(const BadField& bad, std::ostream* out) {
  *out << bad.pointer << ": " << bad.message;
}

Json with(const BadField& bad) {
  Json config = test::small_config(true);
  const Json::json_pointer pointer(bad.pointer);
  if (bad.value) {
    config[pointer] = *bad.value;
  } else {
    config[pointer.parent_pointer()].erase(pointer.back());
  }
  return config;
}

class BadFieldTest : public testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsRefusedByName) {
  const auto config = ModelConfig::parse(with(GetParam()).dump());
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(message_of(config.status()), GetParam().message);
}

const BadField kBadFields[] = {
    {"/architectures", {}, "architectures: missing, expected a list of one name"},
    {"/architectures", Json::array(), "architectures: expected a list of one name, found []"},
    {"/architectures",
     "DeepseekV3ForCausalLM",
     "architectures: expected a list of one name, found \"DeepseekV3ForCausalLM\""},
    {"/architectures/0",
     "Qwen2ForCausalLM",
     "architectures: Qwen2ForCausalLM is not supported, only DeepseekV3ForCausalLM"},
    {"/architectures/0",
     "DeepseekV32ForCausalLM",
     "architectures: DeepseekV32ForCausalLM is not supported, only DeepseekV3ForCausalLM"},
    {"/model_type", {}, "model_type: missing, expected a string"},
    {"/model_type",
     "deepseek_v2",
     "model_type: \"deepseek_v2\" is not supported, only \"deepseek_v3\""},
    {"/vocab_size", {}, "vocab_size: missing, expected an integer from 1 to 16777216"},
    {"/vocab_size", 0, "vocab_size: expected an integer from 1 to 16777216, found 0"},
    {"/vocab_size",
     9223372036854775807,
     "vocab_size: expected an integer from 1 to 16777216, found 9223372036854775807"},
    {"/vocab_size",
     18446744073709551615U,
     "vocab_size: expected an integer from 1 to 16777216, found 18446744073709551615"},
    {"/hidden_size", "160", "hidden_size: expected an integer from 1 to 131072, found \"160\""},
    {"/hidden_size", -160, "hidden_size: expected an integer from 1 to 131072, found -160"},
    {"/hidden_size", 160.5, "hidden_size: expected an integer from 1 to 131072, found 160.5"},
    {"/intermediate_size",
     true,
     "intermediate_size: expected an integer from 1 to 1048576, found true"},
    {"/moe_intermediate_size",
     {},
     "moe_intermediate_size: missing, expected an integer from 1 to 1048576"},
    {"/num_hidden_layers", 0, "num_hidden_layers: expected an integer from 1 to 1024, found 0"},
    {"/num_nextn_predict_layers",
     17,
     "num_nextn_predict_layers: expected an integer from 0 to 16, found 17"},
    {"/first_k_dense_replace",
     -1,
     "first_k_dense_replace: expected an integer from 0 to 1024, found -1"},
    {"/first_k_dense_replace", 3, "first_k_dense_replace: 3 is more than num_hidden_layers 2"},
    {"/moe_layer_freq", 0, "moe_layer_freq: expected an integer from 1 to 1024, found 0"},
    {"/num_attention_heads",
     4097,
     "num_attention_heads: expected an integer from 1 to 4096, found 4097"},
    {"/q_lora_rank", {}, "q_lora_rank: missing, expected an integer or null"},
    {"/q_lora_rank", -1, "q_lora_rank: expected an integer from 0 to 131072, found -1"},
    {"/kv_lora_rank", 0, "kv_lora_rank: expected an integer from 1 to 131072, found 0"},
    {"/qk_nope_head_dim",
     Json::array({16}),
     "qk_nope_head_dim: expected an integer from 1 to 4096, found [16]"},
    {"/qk_rope_head_dim", 7, "qk_rope_head_dim: 7 is odd, rotary values come in pairs"},
    {"/qk_rope_head_dim", 0, "qk_rope_head_dim: expected an integer from 2 to 4096, found 0"},
    {"/v_head_dim",
     Json::object(),
     "v_head_dim: expected an integer from 1 to 4096, found an object"},
    {"/n_routed_experts", {}, "n_routed_experts: missing, expected an integer or null"},
    {"/n_routed_experts", 5, "n_routed_experts: 5 is not a multiple of n_group 2"},
    {"/n_routed_experts",
     2,
     "n_group: 2 groups of 2 experts have 1 each; a group's score is the sum of its best two"},
    {"/n_routed_experts", 4097, "n_routed_experts: expected an integer from 0 to 4096, found 4097"},
    {"/n_shared_experts", 65, "n_shared_experts: expected an integer from 0 to 64, found 65"},
    {"/num_experts_per_tok", 0, "num_experts_per_tok: expected an integer from 1 to 4096, found 0"},
    {"/num_experts_per_tok",
     3,
     "num_experts_per_tok: 3 is more than the 2 experts of 1 kept groups"},
    {"/n_group", nullptr, "n_group: missing, expected an integer from 1 to 4096"},
    {"/topk_group", 3, "topk_group: 3 is more than n_group 2"},
    {"/norm_topk_prob", 1, "norm_topk_prob: expected true or false, found 1"},
    {"/routed_scaling_factor",
     0,
     "routed_scaling_factor: expected a number from 1e-06 to 1000000, found 0"},
    {"/scoring_func", "softmax", "scoring_func: \"softmax\" is not supported, only \"sigmoid\""},
    {"/topk_method",
     "group_limited_greedy",
     "topk_method: \"group_limited_greedy\" is not supported, only \"noaux_tc\""},
    {"/hidden_act", "gelu", "hidden_act: \"gelu\" is not supported, only \"silu\""},
    {"/attention_bias", true, "attention_bias: true is not supported, only false"},
    {"/mlp_bias", true, "mlp_bias: true is not supported, only false"},
    {"/partial_rotary_factor", 0.5, "partial_rotary_factor: 0.5 is not supported, only 1.0"},
    {"/sliding_window", 4096, "sliding_window: 4096 is not supported, only null"},
    {"/rms_norm_eps", 0, "rms_norm_eps: expected a number from 1e-12 to 0.1, found 0"},
    {"/rms_norm_eps", "1e-6", "rms_norm_eps: expected a number from 1e-12 to 0.1, found \"1e-6\""},
    {"/max_position_embeddings",
     0,
     "max_position_embeddings: expected an integer from 1 to 1073741824, found 0"},
    {"/tie_word_embeddings", "no", "tie_word_embeddings: expected true or false, found \"no\""},
    {"/bos_token_id", 64, "bos_token_id: expected an integer from 0 to 63, found 64"},
    {"/eos_token_id",
     64,
     "eos_token_id: expected a token id from 0 to 63 or a list of 1 to 64 of them, found 64"},
    {"/eos_token_id",
     Json::array({1, -1}),
     "eos_token_id: expected a token id from 0 to 63 or a list of 1 to 64 of them, found [1,-1]"},
    {"/eos_token_id",
     Json::array(),
     "eos_token_id: expected a token id from 0 to 63 or a list of 1 to 64 of them, found []"},
    {"/rope_theta", 1, "rope_theta: expected a number from 1.0001 to 1000000000000, found 1"},
    {"/rope_interleave", "yes", "rope_interleave: expected true or false, found \"yes\""},
    {"/rope_scaling", "yarn", "rope_scaling: expected an object or null, found \"yarn\""},
    {"/rope_scaling/type",
     "linear",
     "rope_scaling: type \"linear\" is not supported, only \"yarn\" and \"default\""},
    {"/rope_scaling/type",
     {},
     "rope_scaling: type \"\" is not supported, only \"yarn\" and \"default\""},
    {"/rope_scaling/rope_type",
     "llama3",
     "rope_scaling.rope_type: expected the same as type, found \"llama3\""},
    {"/rope_scaling/factor",
     0.5,
     "rope_scaling.factor: expected a number from 1 to 10000, found 0.5"},
    {"/rope_scaling/factor", {}, "rope_scaling.factor: missing, expected a number from 1 to 10000"},
    {"/rope_scaling/original_max_position_embeddings",
     {},
     "rope_scaling.original_max_position_embeddings: missing, expected an integer from 1 to "
     "1073741824"},
    {"/rope_scaling/beta_fast",
     -32,
     "rope_scaling.beta_fast: expected a number from 1e-06 to 1000000, found -32"},
    {"/rope_scaling/beta_slow", 33, "rope_scaling.beta_slow: 33 is more than beta_fast 32"},
    {"/rope_scaling/mscale",
     "1",
     "rope_scaling.mscale: expected a number from 0 to 100, found \"1\""},
    {"/rope_scaling/mscale_all_dim",
     -1,
     "rope_scaling.mscale_all_dim: expected a number from 0 to 100, found -1"},
    {"/rope_scaling/attention_factor",
     1.5,
     "rope_scaling.attention_factor: 1.5 is not supported, only null"},
    {"/rope_scaling/truncate", false, "rope_scaling.truncate: false is not supported, only true"},
    {"/rope_parameters",
     Json({{"rope_theta", 50000}, {"rope_type", "default"}}),
     "rope_parameters.rope_theta: expected the same as rope_theta, found 50000"},
    {"/rope_parameters",
     Json({{"rope_theta", 10000}, {"rope_type", "default"}}),
     "rope_parameters: expected the same scaling as rope_scaling"},
    {"/quantization_config", 8, "quantization_config: expected an object or null, found 8"},
    {"/quantization_config/quant_method",
     {},
     "quantization_config.quant_method: missing, expected a string"},
    {"/quantization_config/quant_method",
     "awq",
     "quantization_config.quant_method: \"awq\" is not supported, only \"fp8\""},
    {"/quantization_config/fmt",
     "e5m2",
     "quantization_config.fmt: \"e5m2\" is not supported, only \"e4m3\""},
    {"/quantization_config/activation_scheme",
     "static",
     "quantization_config.activation_scheme: \"static\" is not supported, only \"dynamic\""},
    {"/quantization_config/weight_block_size",
     {},
     "quantization_config.weight_block_size: missing, expected [128,128]"},
    {"/quantization_config/weight_block_size",
     Json::array({1, 128}),
     "quantization_config.weight_block_size: [1,128] is not supported, only [128,128]"},
    {"/quantization_config/scale_fmt",
     "e5m10",
     "quantization_config.scale_fmt: \"e5m10\" is not supported, only \"float\""},
};
INSTANTIATE_TEST_SUITE_P(AllFields, BadFieldTest, testing::ValuesIn(kBadFields));

TEST(ModelConfigTest, RefusesMoreTensorsThanCouldEverLoad) {
  Json config = test::small_config(false);
  config["num_hidden_layers"] = 1024;
  config["n_routed_experts"] = 4096;
  EXPECT_EQ(message_of(ModelConfig::parse(config.dump()).status()),
            "n_routed_experts: 4096 in each of 1025 layers make 12595200 tensors, at most 2000000 "
            "are accepted");
}

struct BadText {
  std::string text;
  const char* message;  // a part of it
};
void PrintTo(const BadText& bad, std::ostream* out) {
  *out << bad.message;
}

class BadTextTest : public testing::TestWithParam<BadText> {};

TEST_P(BadTextTest, IsRefused) {
  const auto config = ModelConfig::parse(GetParam().text);
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(message_of(config.status()), testing::HasSubstr(GetParam().message));
}

std::string many_values() {
  std::string text = "[0";
  for (int i = 0; i < 100'000; ++i) text += ",0";
  return text + "]";
}

const BadText kBadTexts[] = {
    {"", "not JSON: parse error at line 1, column 1"},
    {"{", "not JSON: parse error at line 1, column 2"},
    {R"({"vocab_size": NaN})", "invalid literal"},
    {R"({"vocab_size": Infinity})", "invalid literal"},
    {R"({"vocab_size": 1e999})", "number overflow parsing '1e999'"},
    {R"({"vocab_size": 64} trailing)", "expected end of input"},
    {"{\"model_type\": \"\xC3\x28\"}", "ill-formed UTF-8"},
    {"[]", "expected an object, found []"},
    {R"({"a": 1, "b": {"c": 1, "c": 2}})", "JSON has key \"c\" twice"},
    {std::string(100'000, '['), "JSON is nested deeper than 32 levels"},
    {R"({")" + std::string(300, 'k') + R"(": 1})", "is 300 bytes long, at most 256 are accepted"},
    {many_values(), "JSON has more than 100000 values"},
    {std::string((1 << 20) + 1, ' '), "JSON is 1048577 bytes long, at most 1048576 are accepted"},
};
INSTANTIATE_TEST_SUITE_P(AllTexts, BadTextTest, testing::ValuesIn(kBadTexts));

TEST(ModelConfigTest, EscapesWhatItQuotes) {
  Json config = test::small_config(false);
  config["architectures"] = {"evil\x1B[2J\nname"};
  EXPECT_EQ(message_of(ModelConfig::parse(config.dump()).status()),
            "architectures: evil?[2J?name is not supported, only DeepseekV3ForCausalLM");
}

TEST(ModelConfigTest, NamesAnAbsentFile) {
  const auto config = ModelConfig::load("/nonexistent/config.json");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(message_of(config.status()), "/nonexistent/config.json: No such file or directory");
}

TEST(ModelConfigTest, NamesTheFileOfABadField) {
  const test::TempDir dir;
  dir.write("config.json", "{}");
  EXPECT_EQ(message_of(ModelConfig::load(dir.path() + "/config.json").status()),
            dir.path() + "/config.json: architectures: missing, expected a list of one name");
}

TEST(ModelConfigTest, RefusesADirectoryInPlaceOfAFile) {
  const test::TempDir dir;
  EXPECT_EQ(message_of(ModelConfig::load(dir.path()).status()),
            dir.path() + ": is not a regular file");
}

}  // namespace
}  // namespace r1d::checkpoint
