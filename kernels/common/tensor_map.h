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
// For tensor_load_4d: the matrix is cut into slices of box_cols columns and groups of 8 rows (both
// divide it, and box_rows is a multiple of 8). A copy brings `slices` slices of box_rows rows as
// [box_rows / 8][slices][8][box_cols], about in the order of memory; its coordinates are (0, 0,
// first slice, first group). L2 fetches no more than 128 bytes at a time: twice that, which narrow
// boxes of rows of 1152 bytes share with others under way, cost mla_decode 5 % of its bandwidth.
cudaError_t encode_slices(const TensorMap2d& matrix, int32_t slices, CUtensorMap* map);

}  // namespace r1d::kernels
