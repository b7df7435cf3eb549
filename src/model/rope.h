// SPDX-License-Identifier: Apache-2.0
// Rotary constants with YaRN. Source: YaRN (arXiv 2309.00071), section 3.2, in DeepSeek's variant:
// softmax scale and cos/sin share the magnitude correction between them.
#pragma once

#include <vector>

#include "r1d/checkpoint/model_config.h"

namespace r1d::model {

struct RopeConstants {
  std::vector<float> inv_freq;  // [qk_rope_head_dim / 2], radians a position
  float cos_sin_scale = 1;      // multiplies cos and sin
  float softmax_scale = 1;      // multiplies q . k; sqrt(qk_head_dim) and mscale^2 included
};

[[nodiscard]] RopeConstants make_rope_constants(const checkpoint::ModelConfig& config);

}  // namespace r1d::model
