// SPDX-License-Identifier: Apache-2.0
// FP8 block-scaled matrix products for many tokens: above some hundred, tensor cores (wgmma) are
// the bound, not the weights' bytes. sm_90a.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>
#include <vector>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// How a product is cut into blocks of the grid; a pure function of the shape.
struct Fp8PrefillTile {
  int32_t block_rows = 0;  // tokens a block
  int32_t block_cols = 0;  // weight rows a block
  // Warpgroups of a block that share K: 2 sum even and odd steps of 128 columns apart.
  int32_t k_groups = 1;
  int32_t split = 0;  // blocks of a cluster that share K (split_product.h); 0: block_product.cuh
};

// `fixed_order` keeps to tiles with k_groups 1 and split 0: those sum K in one order, so that a
// token's result bits depend on neither the tile nor the number of tokens.
[[nodiscard]] Fp8PrefillTile fp8_gemm_prefill_tile(int32_t tokens,
                                                   int64_t rows,
                                                   int64_t cols,
                                                   bool fixed_order = false);

// out[t * out_stride + r] = sum over k of x(t, k) w(r, k), rounded to bf16; 0 <= t < tokens, 0 <= r
// < weight.rows.
//
// weight       rows a multiple of 64 (e.g. 2112), cols a multiple of 128; tiles 128-byte aligned.
// x            QuantizedRows with x.cols == weight.cols and at least `tokens` rows; 1 to 2^20
// tokens. Rows beyond `tokens`
//              are not read. x.data 16-byte aligned.
// out          [tokens, out_stride] bf16, 16-byte aligned, out_stride a multiple of 8. Only the
// first weight.rows
//              columns of the first `tokens` rows are written.
// fixed_order  as above; costs up to a tenth below some 1024 tokens, nothing above.
// Enqueues one kernel, does not synchronise. cudaErrorInvalidValue for shapes outside the above.
[[nodiscard]] cudaError_t fp8_gemm_prefill(const TiledMatrix& weight,
                                           const QuantizedRows& x,
                                           int32_t tokens,
                                           __nv_bfloat16* out,
                                           int64_t out_stride,
                                           bool fixed_order,
                                           const Launch& launch);

// The same with a tile of the caller's choice, for benchmarks: one that fp8_gemm_prefill_tiles
// lists.
[[nodiscard]] cudaError_t fp8_gemm_prefill(const TiledMatrix& weight,
                                           const QuantizedRows& x,
                                           int32_t tokens,
                                           __nv_bfloat16* out,
                                           int64_t out_stride,
                                           const Fp8PrefillTile& tile,
                                           const Launch& launch);
// All tiles there are.
[[nodiscard]] std::vector<Fp8PrefillTile> fp8_gemm_prefill_tiles();

// h(t, i) = silu(g) u with g = sum over k of x(t, k) gate(i, k) and u likewise, quantized to 1 x
// 128 groups: writes the first `tokens` rows of out.data [tokens, I] and the scales of those rows.
// g, u and h stay f32 until h is quantized.
//
// weight  intermediate (I) a multiple of 128; cols a multiple of 128.
// out     out.cols == I; out.scale_stride >= tokens.
// Everything else as fp8_gemm_prefill. The bits do not depend on `tokens`.
[[nodiscard]] cudaError_t fp8_gate_up_prefill(const TiledGateUp& weight,
                                              const QuantizedRows& x,
                                              int32_t tokens,
                                              const QuantizedRows& out,
                                              const Launch& launch);

// The same with h rounded to bf16 in out [tokens, out_stride] (out_stride a multiple of 8), for any
// I that is a multiple of 32.
[[nodiscard]] cudaError_t fp8_gate_up_prefill_bf16(const TiledGateUp& weight,
                                                   const QuantizedRows& x,
                                                   int32_t tokens,
                                                   __nv_bfloat16* out,
                                                   int64_t out_stride,
                                                   const Launch& launch);

}  // namespace r1d::kernels
