// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/config_checks.h"

#include "r1d/base/status.h"

namespace r1d::checkpoint {
namespace {

absl::Status check_groups(const ModelConfig& config) {
  if (config.n_routed_experts % config.n_group != 0) {
    return invalid_argument("n_routed_experts: {} is not a multiple of n_group {}",
                            config.n_routed_experts,
                            config.n_group);
  }
  const int32_t group_size = config.n_routed_experts / config.n_group;
  if (config.n_group > 1 && group_size < 2) {
    return invalid_argument(
        "n_group: {} groups of {} experts have {} each; a group's score is the sum of its best two",
        config.n_group,
        config.n_routed_experts,
        group_size);
  }
  if (config.topk_group > config.n_group) {
    return invalid_argument(
        "topk_group: {} is more than n_group {}", config.topk_group, config.n_group);
  }
  const int32_t candidates = config.topk_group * group_size;
  if (config.num_experts_per_tok > candidates) {
    return invalid_argument("num_experts_per_tok: {} is more than the {} experts of {} kept groups",
                            config.num_experts_per_tok,
                            candidates,
                            config.topk_group);
  }
  return absl::OkStatus();
}

// A config of a few hundred bytes must not ask for a list of tensors that fills the memory.
absl::Status check_tensor_count(const ModelConfig& config) {
  constexpr int64_t kMaxExpertTensors = 2'000'000;
  const int64_t num_layers =
      int64_t{config.num_hidden_layers} + int64_t{config.num_nextn_predict_layers};
  const int64_t count = 3 * num_layers * config.n_routed_experts;
  if (count <= kMaxExpertTensors) return absl::OkStatus();
  return invalid_argument(
      "n_routed_experts: {} in each of {} layers make {} tensors, at most {} are accepted",
      config.n_routed_experts,
      num_layers,
      count,
      kMaxExpertTensors);
}

}  // namespace

absl::Status check_config(const ModelConfig& config) {
  if (config.qk_rope_head_dim % 2 != 0) {
    return invalid_argument("qk_rope_head_dim: {} is odd, rotary values come in pairs",
                            config.qk_rope_head_dim);
  }
  if (config.first_k_dense_replace > config.num_hidden_layers) {
    return invalid_argument("first_k_dense_replace: {} is more than num_hidden_layers {}",
                            config.first_k_dense_replace,
                            config.num_hidden_layers);
  }
  if (config.n_routed_experts == 0) return absl::OkStatus();
  R1D_RETURN_IF_ERROR(check_groups(config));
  return check_tensor_count(config);
}

}  // namespace r1d::checkpoint
