// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/model_config.h"
#include "r1d/engine/engine.h"
#include "r1d/ops/ops.h"

namespace r1d::engine {

// One rank's latent cache: pages of every layer, one page a block id. Every rank holds the same
// rows.
class LatentCache {
 public:
  [[nodiscard]] static absl::StatusOr<LatentCache> create(const checkpoint::ModelConfig& config,
                                                          const EngineOptions& options,
                                                          const CachePlan& plan,
                                                          ops::Ops& ops);

  [[nodiscard]] std::span<const ops::LatentPages> layers() const { return layers_; }

 private:
  std::vector<std::unique_ptr<ops::Buffer>> buffers_;
  std::vector<ops::LatentPages> layers_;
};

}  // namespace r1d::engine
