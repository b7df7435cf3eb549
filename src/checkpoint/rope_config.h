// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "r1d/checkpoint/model_config.h"

#include "checkpoint/json_fields.h"

namespace r1d::checkpoint {

// Fills rope_theta, yarn and rope_interleave from `rope_scaling`, `rope_theta` or the newer
// `rope_parameters`, which holds both. A file with both spellings must say the same twice.
void read_rope(JsonFields& fields, ModelConfig& config);

}  // namespace r1d::checkpoint
