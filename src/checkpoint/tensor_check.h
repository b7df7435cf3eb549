// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <unordered_map>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/model_config.h"
#include "r1d/checkpoint/weight_source.h"

#include "checkpoint/shard_set.h"

namespace r1d::checkpoint {

// A tensor whose shape and dtype are what the model needs.
struct CheckedTensor {
  StoredTensor stored;
  ShardSet::Place place;
};

struct CheckedTensors {
  std::unordered_map<std::string, CheckedTensor> by_name;  // weights and scales
  bool has_mtp = false;
};

// Compares what the shards hold with expected_tensors(): each tensor there, of the right shape and
// dtype, with its scale if it is FP8, and nothing else.
[[nodiscard]] absl::StatusOr<CheckedTensors> check_tensors(const ModelConfig& config,
                                                           const ShardSet& set);

}  // namespace r1d::checkpoint
