// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <absl/status/statusor.h>

#include "r1d/ops/collectives.h"

namespace r1d::ops::cuda {

// Sums of bf16 over GPUs 0 .. world_size - 1, every way, in graphs and call by call.
[[nodiscard]] absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options);

}  // namespace r1d::ops::cuda
