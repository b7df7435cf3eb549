// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "r1d/ops/ops.h"

namespace r1d::ops::cpu {

// Floats of scratch that choose_experts needs.
[[nodiscard]] int64_t router_scratch(const RouterOptions& options);

// One token's experts and weights from its router logits [E]: `experts` and `weights` [top_k], best
// first. Equal scores: the lower index. A NaN never beats a number; ids are valid in any case.
// Source: DeepSeek-V3 report, section 2.1.2 (arXiv 2412.19437), topk_method noaux_tc.
void choose_experts(const float* logits,
                    const float* bias,
                    const RouterOptions& options,
                    float* scratch,
                    int32_t* experts,
                    float* weights);

}  // namespace r1d::ops::cpu
