// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_load.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/model/deepseek_v3.h"
#include "r1d/ops/ops.h"

namespace r1d::model {

// One rank's weights on its device: matrices as stored, vectors (norms, router bias) as f32. Memory
// is taken once per layer, before the first byte is read. Inside a layer stand first the matrices
// in load order, kv_a right behind q_a, then their scales in the same order, then the vectors:
// gate, up and down of an expert are neighbours, and experts follow each other at one distance,
// which is what Ops::prepare() may rely on. Threads: confined to the rank's thread.
class WeightStore {
 public:
  // `files` is shared by the ranks that load together.
  [[nodiscard]] static absl::StatusOr<WeightStore> load(const checkpoint::WeightSource& source,
                                                        const checkpoint::RankShard& shard,
                                                        ops::Ops& ops,
                                                        bool with_mtp,
                                                        checkpoint::WeightLoad& files,
                                                        const LoadProgress& progress);

  // Borrowed; the name must be one that was loaded.
  [[nodiscard]] const ops::Matrix& matrix(const std::string& name) const;
  [[nodiscard]] const float* vector(const std::string& name) const;

 private:
  class Loader;
  std::vector<std::unique_ptr<ops::Buffer>> buffers_;
  std::unordered_map<std::string, ops::Matrix> matrices_;
  std::unordered_map<std::string, const float*> vectors_;
};

}  // namespace r1d::model
