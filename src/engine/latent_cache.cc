// SPDX-License-Identifier: Apache-2.0
#include "engine/latent_cache.h"

#include "r1d/base/status.h"

namespace r1d::engine {

absl::StatusOr<LatentCache> LatentCache::create(const checkpoint::ModelConfig& config,
                                                const EngineOptions& options,
                                                const CachePlan& plan,
                                                ops::Ops& ops) {
  LatentCache cache;
  const int64_t layer_bytes = plan.bytes / config.num_hidden_layers;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    R1D_ASSIGN_OR_RETURN(auto buffer,
                         ops.allocate(static_cast<size_t>(layer_bytes),
                                      ops::MemoryKind::kLatentCache,
                                      fmt::format("latent cache of layer {}", layer)));
    cache.layers_.push_back({.data = buffer->data(),
                             .dtype = options.kv_cache_dtype,
                             .num_blocks = plan.num_blocks,
                             .block_size = options.block_size,
                             .width = config.latent_width()});
    cache.buffers_.push_back(std::move(buffer));
  }
  return cache;
}

}  // namespace r1d::engine
