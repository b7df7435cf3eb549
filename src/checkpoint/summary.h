// SPDX-License-Identifier: Apache-2.0
// The numbers behind `r1d inspect`.
#pragma once

#include <array>
#include <cstdint>

#include <absl/status/statusor.h>

#include "r1d/checkpoint/shard_plan.h"
#include "r1d/checkpoint/weight_source.h"

namespace r1d::checkpoint {

struct TensorTotal {
  int64_t num_tensors = 0;
  int64_t bytes = 0;
};

struct Summary {
  int64_t main_parameters = 0;          // scales are not parameters
  int64_t active_parameters = 0;        // of the main ones, those a token passes
  int64_t mtp_parameters = 0;           // without its copies of embedding and head
  std::array<TensorTotal, 3> by_dtype;  // indexed by DType; scales under kF32; copies included
  TensorTotal main;
  TensorTotal all;                  // with MTP and its copies
  int64_t rank_main_bytes = 0;      // what one rank reads; all ranks read the same amount
  int64_t rank_mtp_bytes = 0;       // on top, with MTP
  int64_t kv_values_per_token = 0;  // latent cache, all main layers
};

// kInvalidArgument when a size does not divide among the ranks.
[[nodiscard]] absl::StatusOr<Summary> summarize(const WeightSource& source,
                                                int32_t world_size,
                                                ExpertSplit expert_split);

}  // namespace r1d::checkpoint
