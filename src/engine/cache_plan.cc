// SPDX-License-Identifier: Apache-2.0
#include "engine/cache_plan.h"

#include <algorithm>
#include <limits>

#include "r1d/base/status.h"

namespace r1d::engine {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max() / 2;

int64_t blocks_for(int64_t tokens, int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

// Blocks when the operator gave no size: the rank's budget, but no more than a full batch of the
// longest sequences can use.
int64_t default_blocks(int64_t longest,
                       const EngineOptions& options,
                       int64_t block_bytes,
                       int64_t budget) {
  const int64_t share = std::max<int64_t>(budget, 0) / block_bytes;
  const int64_t useful = blocks_for(longest, options.block_size) * options.max_batch_size;
  return std::min(share, useful);
}

}  // namespace

ops::LatentFormat latent_format(const checkpoint::ModelConfig& config, DType dtype) {
  return {.dtype = dtype, .latent = config.kv_lora_rank, .rope = config.qk_rope_head_dim};
}

int64_t cache_bytes_per_token(const checkpoint::ModelConfig& config, DType dtype) {
  return latent_format(config, dtype).bytes_per_token() * config.num_hidden_layers;
}

absl::Status check_length(const checkpoint::ModelConfig& config, const EngineOptions& options) {
  if (options.max_model_len <= config.max_position_embeddings) return absl::OkStatus();
  return invalid_argument(
      "scheduler.max_model_len {} is more than the model's max_position_embeddings {}",
      options.max_model_len,
      config.max_position_embeddings);
}

absl::StatusOr<CachePlan> plan_cache(const checkpoint::ModelConfig& config,
                                     const EngineOptions& options,
                                     int64_t budget_bytes) {
  R1D_RETURN_IF_ERROR(check_length(config, options));
  if (!latent_format(config, options.kv_cache_dtype).valid()) {
    return invalid_argument(
        "engine.kv_cache_dtype fp8 needs a kv_lora_rank that is a multiple of 4, the model's is {}",
        config.kv_lora_rank);
  }
  const int64_t model_len = config.max_position_embeddings;
  CachePlan plan;
  plan.bytes_per_token = cache_bytes_per_token(config, options.kv_cache_dtype);
  const int64_t block_bytes = plan.bytes_per_token * options.block_size;
  const int64_t longest = options.max_model_len > 0 ? options.max_model_len : model_len;
  const int64_t blocks = options.kv_cache_bytes > 0
                             ? options.kv_cache_bytes / block_bytes
                             : default_blocks(longest, options, block_bytes, budget_bytes);
  if (blocks < 1) {
    return invalid_argument(
        "the KV cache would hold no block: {} bytes a rank, one block of {} tokens takes {}; "
        "raise engine.kv_cache_memory",
        options.kv_cache_bytes > 0 ? options.kv_cache_bytes : budget_bytes,
        options.block_size,
        block_bytes);
  }
  plan.num_blocks = static_cast<int32_t>(std::min(blocks, kMaxBlocks));
  const int64_t capacity = int64_t{plan.num_blocks} * options.block_size;
  if (options.max_model_len > capacity) {
    return invalid_argument(
        "scheduler.max_model_len {} needs {} bytes of KV cache a rank, there are {}; raise "
        "engine.kv_cache_memory or lower scheduler.max_model_len",
        options.max_model_len,
        blocks_for(options.max_model_len, options.block_size) * block_bytes,
        int64_t{plan.num_blocks} * block_bytes);
  }
  plan.max_model_len = static_cast<int32_t>(
      std::min({longest, capacity, int64_t{std::numeric_limits<int32_t>::max()}}));
  if (plan.max_model_len < 2) {
    return invalid_argument("max_model_len is {}: a prompt token and an output token need 2",
                            plan.max_model_len);
  }
  plan.bytes = int64_t{plan.num_blocks} * block_bytes;
  return plan;
}

}  // namespace r1d::engine
