// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

#include "r1d/ops/cuda_ops.h"

namespace r1d::ops {

// Batch sizes that decode graphs are recorded for; a step takes the next larger one. Fine steps
// where a padding row costs most of a percent, coarse ones where it does not.
inline constexpr std::array<int32_t, 15> kGraphBuckets = {
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256};

// What cuda_workspace_bytes() answers where there is no toolkit: the same sizes, written down once
// more. tests/ops/cuda_memory_test.cc holds the two equal where both exist.
[[nodiscard]] int64_t cuda_workspace_formula(const ModelDims& dims,
                                             const CudaOptions& options,
                                             const GpuTarget& gpu);

}  // namespace r1d::ops
