// SPDX-License-Identifier: Apache-2.0
// bf16 activations to e4m3 with one scale per 1x128 group (layout.h, QuantizedRows). The sign of a
// value that rounds to zero is not kept.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// x: `rows` rows of out.cols values, `stride` values apart (a multiple of 8), 16-byte aligned.
// Fills out.data and the first `rows` scales of each column block; out.scale_stride >= rows.
cudaError_t quantize_rows(const __nv_bfloat16* x,
                          int64_t stride,
                          int64_t rows,
                          const QuantizedRows& out,
                          const Launch& launch);

}  // namespace r1d::kernels
