// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <absl/status/status.h>

#include "r1d/checkpoint/model_config.h"

namespace r1d::checkpoint {

// The rules that bind several fields of a config whose single fields are in range.
[[nodiscard]] absl::Status check_config(const ModelConfig& config);

}  // namespace r1d::checkpoint
