// SPDX-License-Identifier: Apache-2.0
#include "r1d/checkpoint/model_config.h"

#include "r1d/base/file.h"
#include "r1d/base/status.h"

#include "checkpoint/config_checks.h"
#include "checkpoint/errors.h"
#include "checkpoint/json.h"
#include "checkpoint/json_fields.h"
#include "checkpoint/rope_config.h"
#include "checkpoint/token_ids.h"

namespace r1d::checkpoint {
namespace {

using enum Presence;

// Bounds far above any model of the family, and low enough that no size overflows int64_t: the
// largest matrix has 2^26 x 2^17 values of 4 bytes, and check_config() bounds how many there are.
constexpr int64_t kMaxVocabulary = 1 << 24;
constexpr int64_t kMaxHidden = 1 << 17;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxMtpLayers = 16;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxSharedExperts = 64;
constexpr int64_t kMaxPositions = 1 << 30;

void read_identity(JsonFields& fields, ModelConfig& config) {
  constexpr const char* kArchitecture = "DeepseekV3ForCausalLM";
  const Json* names = fields.find("architectures");
  if (names == nullptr || !names->is_array() || names->size() != 1 || !names->front().is_string()) {
    return fields.fail_expected("architectures", "a list of one name");
  }
  config.architecture = names->front().get<std::string>();
  if (config.architecture != kArchitecture) {
    fields.fail(invalid_argument("architectures: {} is not supported, only {}",
                                 printable(config.architecture),
                                 kArchitecture));
  }
  fields.text("model_type", config.model_type, kRequired);
  fields.only("model_type", "deepseek_v3");
}

void read_sizes(JsonFields& fields, ModelConfig& config) {
  fields.integer("vocab_size", config.vocab_size, 1, kMaxVocabulary, kRequired);
  fields.integer("hidden_size", config.hidden_size, 1, kMaxHidden, kRequired);
  fields.integer("intermediate_size", config.intermediate_size, 1, kMaxIntermediate, kRequired);
  fields.integer("num_hidden_layers", config.num_hidden_layers, 1, kMaxLayers, kRequired);
  fields.integer(
      "num_nextn_predict_layers", config.num_nextn_predict_layers, 0, kMaxMtpLayers, kOptional);
  fields.integer(
      "max_position_embeddings", config.max_position_embeddings, 1, kMaxPositions, kRequired);
  fields.number("rms_norm_eps", config.rms_norm_eps, 1e-12, 1e-1, kOptional);
  fields.boolean("tie_word_embeddings", config.tie_word_embeddings, kOptional);
}

void read_attention(JsonFields& fields, ModelConfig& config) {
  fields.integer("num_attention_heads", config.num_attention_heads, 1, kMaxHeads, kRequired);
  fields.integer("q_lora_rank", config.q_lora_rank, 0, kMaxHidden, kOptional);
  fields.integer("kv_lora_rank", config.kv_lora_rank, 1, kMaxHidden, kRequired);
  fields.integer("qk_nope_head_dim", config.qk_nope_head_dim, 1, kMaxHeadDim, kRequired);
  fields.integer("qk_rope_head_dim", config.qk_rope_head_dim, 2, kMaxHeadDim, kRequired);
  fields.integer("v_head_dim", config.v_head_dim, 1, kMaxHeadDim, kRequired);
}

void read_experts(JsonFields& fields, ModelConfig& config) {
  fields.integer("n_routed_experts", config.n_routed_experts, 0, kMaxExperts, kOptional);
  const Presence presence = config.n_routed_experts > 0 ? kRequired : kOptional;
  fields.integer(
      "moe_intermediate_size", config.moe_intermediate_size, 1, kMaxIntermediate, presence);
  fields.integer("first_k_dense_replace", config.first_k_dense_replace, 0, kMaxLayers, presence);
  fields.integer("moe_layer_freq", config.moe_layer_freq, 1, kMaxLayers, kOptional);
  fields.integer("n_shared_experts", config.n_shared_experts, 0, kMaxSharedExperts, kOptional);
  fields.integer("num_experts_per_tok", config.num_experts_per_tok, 1, kMaxExperts, presence);
  fields.integer("n_group", config.n_group, 1, kMaxExperts, presence);
  fields.integer("topk_group", config.topk_group, 1, kMaxExperts, presence);
  fields.boolean("norm_topk_prob", config.norm_topk_prob, presence);
  fields.number("routed_scaling_factor", config.routed_scaling_factor, 1e-6, 1e6, presence);
  fields.only("scoring_func", "sigmoid");
  fields.only("topk_method", "noaux_tc");
}

void read_special_tokens(JsonFields& fields, ModelConfig& config) {
  const int64_t last = config.vocab_size - 1;
  fields.integer("bos_token_id", config.bos_token_id, 0, last, kOptional);
  read_token_ids(fields, "eos_token_id", last, config.eos_token_ids);
}

// Features that change the maths and that no model of this family uses.
void refuse_unsupported(JsonFields& fields) {
  fields.only("hidden_act", "silu");
  fields.only("attention_bias", false);
  fields.only("mlp_bias", false);
  fields.only("partial_rotary_factor", 1.0);
  fields.only("sliding_window", nullptr);
}

void read_quantization(JsonFields& fields, ModelConfig& config) {
  const Json* object = fields.find_object("quantization_config");
  if (object == nullptr) return;
  JsonFields quantization(*object, "quantization_config.");
  std::string method;
  quantization.text("quant_method", method, kRequired);
  quantization.only("quant_method", "fp8");
  quantization.only("fmt", "e4m3");
  quantization.only("activation_scheme", "dynamic");
  if (quantization.find("weight_block_size") == nullptr) {
    quantization.fail_expected("weight_block_size", "[128,128]");
  }
  quantization.only("weight_block_size", Json::array({128, 128}));
  std::string scale_format = "float";
  quantization.text("scale_fmt", scale_format, kOptional);
  // DeepSeek-V3.1's "ue8m0" is about the scales of activations; those of weights stay F32, and a
  // tensor stored otherwise is refused by its dtype.
  if (scale_format != "ue8m0") quantization.only("scale_fmt", "float");
  fields.fail(quantization.status());
  config.quantization = QuantizationConfig{};
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::parse(std::string_view text) {
  R1D_ASSIGN_OR_RETURN(const Json json, parse_json(text, kConfigJson));
  if (!json.is_object()) return invalid_argument("expected an object, found {}", describe(json));
  JsonFields fields(json);
  ModelConfig config;
  read_identity(fields, config);
  // null says that there is none; a file without these means some other default.
  for (const char* name : {"q_lora_rank", "n_routed_experts"}) {
    if (!json.contains(name)) fields.fail_expected(name, "an integer or null");
  }
  refuse_unsupported(fields);
  read_sizes(fields, config);
  read_attention(fields, config);
  read_experts(fields, config);
  read_special_tokens(fields, config);
  read_rope(fields, config);
  read_quantization(fields, config);
  R1D_RETURN_IF_ERROR(fields.status());
  R1D_RETURN_IF_ERROR(check_config(config));
  return config;
}

absl::StatusOr<ModelConfig> ModelConfig::load(const std::string& path) {
  absl::StatusOr<std::string> text = read_text_file(path, kConfigJson.max_bytes);
  if (!text.ok()) return with_context(text.status(), path);
  absl::StatusOr<ModelConfig> config = parse(*text);
  if (!config.ok()) return with_context(config.status(), path);
  return config;
}

}  // namespace r1d::checkpoint
