// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/engine/engine.h"
#include "r1d/ops/ops.h"

#include "engine/numa.h"

namespace r1d::engine {

// Threads of all ranks together, as asked for or one a core.
[[nodiscard]] int32_t total_threads(const EngineOptions& options);

// What a rank may spend on its latent cache when the operator gave no size. The host: a quarter of
// the rank's share of spare memory. A GPU: what weights and workspaces leave of it, less a reserve;
// workspaces for sequences of up to `longest` tokens. kInvalidArgument for a cache format that the
// device does not have.
[[nodiscard]] absl::StatusOr<int64_t> cache_budget(const EngineOptions& options,
                                                   const ops::ModelDims& dims,
                                                   int64_t weight_bytes,
                                                   int32_t longest);

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
