// SPDX-License-Identifier: Apache-2.0
// Borrowed views of memory on the device that the Ops object drives (host memory for the CPU). No
// absl, fmt or gRPC here: nvcc reads this header.
#pragma once

#include <cstdint>

#include "r1d/base/dtype.h"

namespace r1d::ops {

// Activations [rows, cols], row-major, rows `stride` elements apart. The dtype is the Ops object's
// activation_dtype() (f32 on the CPU).
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// A Linear's weight as the checkpoint stores it: [rows = out, cols = in], row-major, dense; y = x
// W^T. FP8: element (r, c) is w * scale[((r + scale_row_offset) / 128) * scale_cols + (c +
// scale_col_offset) / 128]. The offsets are the position of a rank's slice inside its first scale
// block (0 when aligned).
struct Matrix {
  const void* data = nullptr;  // 64-byte aligned start
  DType dtype = DType::kBF16;
  int64_t rows = 0;
  int64_t cols = 0;
  const float* scale = nullptr;  // null unless FP8; [scale_rows, scale_cols] f32
  int64_t scale_cols = 0;
  int32_t scale_row_offset = 0;
  int32_t scale_col_offset = 0;
  static constexpr int32_t kScaleBlock = 128;
};

}  // namespace r1d::ops
