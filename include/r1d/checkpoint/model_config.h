// SPDX-License-Identifier: Apache-2.0
// config.json -> ModelConfig. Fields are spelled as in the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::checkpoint {

// YaRN long-context scaling of the rotary frequencies (arXiv 2309.00071, DeepSeek's variant).
struct YarnConfig {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;          // enters the cos/sin multiplier
  double mscale_all_dim = 0;  // enters the softmax scale, squared
};

// 128x128 blocks of FP8 weights with one f32 multiplier each (`weight_scale_inv`).
struct QuantizationConfig {
  int64_t block_rows = 128;
  int64_t block_cols = 128;
};

// A DeepSeek-V3 / R1 model. Every size comes from config.json; values are checked by parse().
struct ModelConfig {
  std::string architecture;  // "DeepseekV3ForCausalLM"
  std::string model_type;    // "deepseek_v3"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t moe_intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_nextn_predict_layers = 0;  // MTP layers; stored behind the main ones
  int32_t first_k_dense_replace = 0;
  int32_t moe_layer_freq = 1;
  int32_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0: one q_proj, no low-rank query
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int32_t n_routed_experts = 0;
  int32_t n_shared_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn;
  bool rope_interleave = true;  // false: rotate halves of the stored order
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  TokenId bos_token_id = 0;
  std::vector<TokenId> eos_token_ids;
  std::optional<QuantizationConfig> quantization;

  // Parses and checks config.json's text (at most 1 MiB, depth 32). kInvalidArgument names the
  // field, what was expected and what was found; an unsupported feature is refused by its name.
  [[nodiscard]] static absl::StatusOr<ModelConfig> parse(std::string_view text);

  // The same, from a file; errors carry its path.
  [[nodiscard]] static absl::StatusOr<ModelConfig> load(const std::string& path);

  [[nodiscard]] bool is_moe_layer(int32_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  [[nodiscard]] int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  // Values the latent cache keeps per token and layer.
  [[nodiscard]] int64_t latent_width() const { return kv_lora_rank + qk_rope_head_dim; }
};

}  // namespace r1d::checkpoint
