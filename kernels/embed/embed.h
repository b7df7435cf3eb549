// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

// out[t] = bf16(table[ids[t] - first_row]); zeros for ids outside [first_row, first_row + rows),
// which other ranks hold. Enqueues, never synchronises; no token: nothing is enqueued.
struct Embed {
  const void* table = nullptr;  // [rows, D], bf16, or f32 when table_f32; contiguous
  bool table_f32 = false;
  int64_t rows = 0;
  int64_t first_row = 0;
  int64_t cols = 0;              // D
  const int32_t* ids = nullptr;  // [T], on the device
  int64_t tokens = 0;
  __nv_bfloat16* out = nullptr;  // [T, D]
  int64_t out_stride = 0;        // elements; 0: D
};
cudaError_t embed(const Embed& a, const Launch& launch);

}  // namespace r1d::kernels
