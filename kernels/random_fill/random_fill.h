// SPDX-License-Identifier: Apache-2.0
// Dummy weights made on the device: bit for bit the values of checkpoint::make_dummy_source.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "r1d/base/dtype.h"

#include "kernels/common/launch.h"

namespace r1d::kernels {

// The slice rows [row_begin, row_end) x cols [col_begin, col_end) of a dummy tensor. Every value is
// center + amplitude * u with u uniform in [-1, 1), from (key, row, col) alone; e4m3 spreads over
// the format's range and reads neither center nor amplitude.
struct RandomFill {
  uint64_t key = 0;  // base::random_bits(seed, FNV-1a of the tensor's name)
  float center = 0;
  float amplitude = 0;
  DType dtype = DType::kF32;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t col_begin = 0;
  int64_t col_end = 0;
};

// Writes the slice row-major and dense to `out` (aligned to the dtype; fastest when rows begin
// 16-byte aligned and col_begin is a multiple of 16 bytes' worth of columns).
// Enqueues nothing for an empty slice. Rows are below 2^31, columns below 2^34.
[[nodiscard]] cudaError_t random_fill(const RandomFill& fill, void* out, const Launch& launch);

}  // namespace r1d::kernels
