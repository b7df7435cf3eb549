// SPDX-License-Identifier: Apache-2.0
// The yardstick of memory-bound kernels: reads memory and keeps nothing.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

// Reads `bytes` (a multiple of 16) at `data`, 16-byte aligned, once, with every SM. `sink` is one
// word on the device that is written only if all the data's words combine to an unlikely value.
[[nodiscard]] cudaError_t read_memory(const void* data,
                                      int64_t bytes,
                                      uint32_t* sink,
                                      const Launch& launch);

}  // namespace r1d::kernels
