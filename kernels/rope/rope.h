// SPDX-License-Identifier: Apache-2.0
// What a step derives from its sequences before the first layer: each token's position, its slot in
// the latent cache, and its rotary angles. Launchers enqueue, never synchronise; no token: nothing
// is enqueued.
#pragma once

#include <cstdint>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// cos_sin[t] = cos(p w_0) .. cos(p w_{r/2-1}) | sin(p w_0) ..., each times cos_sin_scale, p =
// positions[t], w = inv_freq. The angle is the f32 product, as on the CPU; its cosine and sine are
// right to about an f32 ulp at any position.
struct RopeAngles {
  const int32_t* positions = nullptr;  // [T]
  const float* inv_freq = nullptr;     // [rope / 2], YaRN applied
  float cos_sin_scale = 1;
  int64_t tokens = 0;
  int64_t rope = 0;          // even
  float* cos_sin = nullptr;  // [T, rope]
};
cudaError_t rope_angles(const RopeAngles& a, const Launch& launch);

// For every token of the step: position = context_len - query_len + its index in the sequence; slot
// = block id * block_size
// + position % block_size; the angles of the position. A token of a padding sequence (context_len <
// query_len) or of none gets position 0 and slot -1. Sequences may come in any order; they do not
// overlap.
struct BeginStep {
  StepSequences sequences = {};
  int32_t block_size = 0;
  int64_t tokens = 0;               // T
  int32_t* positions = nullptr;     // [T], out
  int64_t* slots = nullptr;         // [T], out
  const float* inv_freq = nullptr;  // [rope / 2]
  float cos_sin_scale = 1;
  int64_t rope = 0;          // 0: no angles, inv_freq and cos_sin are not looked at
  float* cos_sin = nullptr;  // [T, rope], out
};
cudaError_t begin_step(const BeginStep& a, const Launch& launch);

}  // namespace r1d::kernels
