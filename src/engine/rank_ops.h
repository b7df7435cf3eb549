// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/engine/engine.h"
#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/cuda_ops.h"
#include "r1d/ops/ops.h"

#include "engine/numa.h"

namespace r1d::engine {

// Threads of all ranks together, as asked for or one a core.
[[nodiscard]] int32_t total_threads(const EngineOptions& options);

// What the operators of a rank are made for.
[[nodiscard]] ops::CpuOptions cpu_options(const EngineOptions& options);
[[nodiscard]] ops::CudaOptions cuda_options(const EngineOptions& options,
                                            int32_t rank,
                                            int32_t max_model_len);
// The longest context that workspaces are taken for before the cache's size is known.
[[nodiscard]] int32_t longest_sequence(const EngineOptions& options,
                                       const checkpoint::ModelConfig& config);

// Where the machine's topology wants each rank; anywhere with engine.numa off.
[[nodiscard]] std::vector<std::optional<NumaNode>> rank_places(const EngineOptions& options);

// One Ops a rank on the device that `options` names, with its threads at the rank's place.
// kFailedPrecondition when the build, the driver or the number of GPUs does not allow it.
[[nodiscard]] absl::StatusOr<std::vector<std::unique_ptr<ops::Ops>>> make_ops(
    const EngineOptions& options,
    const std::vector<ops::ModelDims>& dims,
    int32_t max_model_len,
    const std::vector<std::optional<NumaNode>>& places);

// "cpu (AVX3, 2 threads)", "cuda (NVIDIA H200)".
[[nodiscard]] std::string describe_device(const EngineOptions& options);

}  // namespace r1d::engine
