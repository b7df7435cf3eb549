// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what the copy engine needs to cut swizzled boxes out of a matrix in global memory.
#pragma once

#include <cstdint>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "r1d/base/dtype.h"

namespace r1d::kernels {

// Bytes of the swizzle pattern in shared memory; also the largest box width.
enum class Swizzle : uint8_t { kNone, k32, k64, k128 };

// A row-major matrix and the box that one tensor_load_2d or tensor_store_2d moves.
struct TensorMap2d {
  const void* data = nullptr;  // 16-byte aligned
  DType dtype = DType::kBF16;  // kF8E4M3 moves plain bytes
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride_bytes = 0;  // between rows, a multiple of 16; 0: dense
  int32_t box_rows = 0;      // 1..256
  int32_t box_cols = 0;      // 1..256; with a swizzle at most its bytes
  Swizzle swizzle = Swizzle::k128;
};

// Fills `map` on the host; no stream, no device memory. Pass the map to a kernel by value as a
// `const __grid_constant__ CUtensorMap`. The coordinates of a copy are (x = column, y = row); what
// a box covers outside the matrix reads as zeros (and counts as bytes copied) and is not stored.
// cudaErrorInvalidValue: the driver refuses the sizes; cudaErrorNotSupported: no driver with it.
cudaError_t encode_2d(const TensorMap2d& matrix, CUtensorMap* map);

}  // namespace r1d::kernels
