// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include <fmt/format.h>

#include "r1d/checkpoint/shard_plan.h"

namespace r1d::checkpoint {
namespace {

// Where a Linear is cut among ranks.
struct Cut {
  Split split = Split::kReplicate;
  bool cols = false;
  int64_t unit = 1;
};

// Collects the tensors of one model; add_ functions append what their name says, in load order.
class TensorList {
 public:
  explicit TensorList(const ModelConfig& config) : config_(config) {}

  void add_vocabulary_matrix(const std::string& name, bool duplicate = false) {
    TensorSpec& spec = add(name, config_.vocab_size, config_.hidden_size);
    spec.split = Split::kVocab;
    spec.duplicate = duplicate;
  }

  void add_vector(const std::string& name, int64_t size) { add(name, size, 1).rank_1 = true; }

  void add_layer(int32_t layer) {
    layer_ = layer;
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const bool is_mtp = layer >= config_.num_hidden_layers;
    if (is_mtp) add_mtp_inputs(prefix);
    add_vector(prefix + "input_layernorm.weight", config_.hidden_size);
    add_attention(prefix + "self_attn.");
    add_vector(prefix + "post_attention_layernorm.weight", config_.hidden_size);
    if (config_.is_moe_layer(layer)) {
      add_moe(prefix + "mlp.");
    } else {
      add_mlp(prefix + "mlp.", config_.intermediate_size, Split::kDenseIntermediate);
    }
    if (is_mtp) {
      add_vector(prefix + "shared_head.norm.weight", config_.hidden_size);
      add_vocabulary_matrix(prefix + "shared_head.head.weight", true);
    }
    layer_ = -1;
  }

  [[nodiscard]] std::vector<TensorSpec> take() { return std::move(specs_); }

 private:
  TensorSpec& add(const std::string& name, int64_t rows, int64_t cols) {
    TensorSpec spec;
    spec.name = name;
    spec.rows = rows;
    spec.cols = cols;
    spec.layer = layer_;
    spec.expert = expert_;
    return specs_.emplace_back(std::move(spec));
  }

  void add_linear(const std::string& name, int64_t out, int64_t in, Cut cut = {}) {
    TensorSpec& spec = add(name, out, in);
    spec.quantizable = true;
    spec.split = cut.split;
    spec.split_cols = cut.cols;
    spec.unit = cut.unit;
  }

  void add_mtp_inputs(const std::string& prefix) {
    add_vocabulary_matrix(prefix + "embed_tokens.weight", true);
    add_vector(prefix + "enorm.weight", config_.hidden_size);
    add_vector(prefix + "hnorm.weight", config_.hidden_size);
    add(prefix + "eh_proj.weight", config_.hidden_size, 2 * config_.hidden_size);
  }

  void add_attention(const std::string& prefix) {
    const ModelConfig& c = config_;
    const int64_t heads = c.num_attention_heads;
    const int64_t kv_dim = c.qk_nope_head_dim + c.v_head_dim;
    const Cut by_query{.split = Split::kHeads, .unit = c.qk_head_dim()};
    if (c.q_lora_rank > 0) {
      add_linear(prefix + "q_a_proj.weight", c.q_lora_rank, c.hidden_size);
      add_vector(prefix + "q_a_layernorm.weight", c.q_lora_rank);
      add_linear(prefix + "q_b_proj.weight", heads * c.qk_head_dim(), c.q_lora_rank, by_query);
    } else {
      add_linear(prefix + "q_proj.weight", heads * c.qk_head_dim(), c.hidden_size, by_query);
    }
    add_linear(prefix + "kv_a_proj_with_mqa.weight", c.latent_width(), c.hidden_size);
    add_vector(prefix + "kv_a_layernorm.weight", c.kv_lora_rank);
    add_linear(prefix + "kv_b_proj.weight",
               heads * kv_dim,
               c.kv_lora_rank,
               {.split = Split::kHeads, .unit = kv_dim});
    add_linear(prefix + "o_proj.weight",
               c.hidden_size,
               heads * c.v_head_dim,
               {.split = Split::kHeads, .cols = true, .unit = c.v_head_dim});
  }

  void add_mlp(const std::string& prefix, int64_t intermediate, Split split) {
    add_linear(prefix + "gate_proj.weight", intermediate, config_.hidden_size, {.split = split});
    add_linear(prefix + "up_proj.weight", intermediate, config_.hidden_size, {.split = split});
    add_linear(prefix + "down_proj.weight",
               config_.hidden_size,
               intermediate,
               {.split = split, .cols = true});
  }

  void add_moe(const std::string& prefix) {
    add(prefix + "gate.weight", config_.n_routed_experts, config_.hidden_size);
    add_vector(prefix + "gate.e_score_correction_bias", config_.n_routed_experts);
    for (expert_ = 0; expert_ < config_.n_routed_experts; ++expert_) {
      add_mlp(fmt::format("{}experts.{}.", prefix, expert_),
              config_.moe_intermediate_size,
              Split::kExpert);
    }
    expert_ = -1;
    if (config_.n_shared_experts > 0) {
      add_mlp(prefix + "shared_experts.",
              config_.n_shared_experts * config_.moe_intermediate_size,
              Split::kSharedIntermediate);
    }
  }

  const ModelConfig& config_;
  std::vector<TensorSpec> specs_;
  int32_t layer_ = -1;
  int32_t expert_ = -1;
};

}  // namespace

std::vector<TensorSpec> expected_tensors(const ModelConfig& config, bool with_mtp) {
  TensorList list(config);
  list.add_vocabulary_matrix("model.embed_tokens.weight");
  const int32_t num_layers = config.num_hidden_layers;
  for (int32_t layer = 0; layer < num_layers; ++layer) list.add_layer(layer);
  list.add_vector("model.norm.weight", config.hidden_size);
  if (!config.tie_word_embeddings) list.add_vocabulary_matrix("lm_head.weight");
  const int32_t num_mtp = with_mtp ? config.num_nextn_predict_layers : 0;
  for (int32_t i = 0; i < num_mtp; ++i) list.add_layer(num_layers + i);
  return list.take();
}

std::string scale_name(const std::string& weight_name) {
  return weight_name + "_scale_inv";
}

}  // namespace r1d::checkpoint
