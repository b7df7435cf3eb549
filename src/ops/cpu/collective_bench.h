// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <absl/status/statusor.h>

#include "r1d/ops/collectives.h"

namespace r1d::ops::cpu {

// Sums through LocalGroup, f32.
[[nodiscard]] absl::StatusOr<std::vector<CollectiveRow>> bench_collectives(
    const CollectiveBenchOptions& options);

}  // namespace r1d::ops::cpu
