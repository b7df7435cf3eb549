// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace r1d::kernels {

// A thread's place in a ring of stages: the stage, and the phase of its barriers in this round.
struct Ring {
  int32_t stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance(int32_t stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace r1d::kernels
