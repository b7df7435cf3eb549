// SPDX-License-Identifier: Apache-2.0
// The product for some ten to 64 tokens and few rows of w: clusters of blocks share K, so that few
// tiles fill the machine. fp8_gemm_prefill.h chooses between it and block_product.cuh.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels::prefill {

// Blocks of 128 columns that a block of the grid takes at most: their scales are in its shared
// memory.
inline constexpr int64_t kSplitMostSteps = 128;

// As fp8_gemm_prefill, for any number of tokens. `split`: blocks of a cluster that share K, 2 to 8
// and at most one per 128 columns. Bits depend on the split, not on the number of tokens.
cudaError_t split_product(const TiledMatrix& weight,
                          const QuantizedRows& x,
                          int32_t tokens,
                          __nv_bfloat16* out,
                          int64_t out_stride,
                          int32_t split,
                          const Launch& launch);

}  // namespace r1d::kernels::prefill
