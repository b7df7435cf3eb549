// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <absl/status/status.h>

#include "r1d/engine/engine.h"

namespace r1d::engine {

// kInvalidArgument when options.max_model_len is more than the model's own.
[[nodiscard]] absl::Status check_length(const checkpoint::ModelConfig& config,
                                        const EngineOptions& options);

}  // namespace r1d::engine
