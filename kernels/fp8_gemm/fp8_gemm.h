// SPDX-License-Identifier: Apache-2.0
// Products with FP8 weights for few tokens (decode): bound by reading the weight once. Weights are
// requested before the launch's dependency wait, so under programmatic launch they stream while the
// kernel before still runs.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// The most tokens a decode product takes. Above 64 the weight is read twice (the second time mostly
// from L2).
// NOTE: made for few tokens; from about 32 on fp8_gemm_prefill.h may be the faster one (README.md
// has the times).
inline constexpr int64_t kFp8DecodeMaxTokens = 128;

// Activations in bf16 that the product quantizes itself, to exactly what quantize_rows() gives.
struct Bf16Rows {
  const __nv_bfloat16* data = nullptr;  // [tokens, cols], `stride` apart; 16-byte aligned
  int64_t stride = 0;                   // a multiple of 8, at least cols
};

// out[t, r] = sum over k of x(t, k) w(r, k), t < tokens, r < w.rows; rows of `out` are out_stride
// values apart (a multiple of 4, at least w.rows), 16-byte aligned. w.rows a multiple of 64, w.cols
// a multiple of 128 up to 20480; x.cols == w.cols. The sum over each 128 of k is scaled and added
// in f32, in an order that depends on (w.rows, w.cols) alone: a token's bits do not depend on the
// batch, the two forms of x give the same bits, and so does every run. Errors:
// cudaErrorInvalidValue for a shape outside these bounds. Nothing is enqueued for no tokens.
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const QuantizedRows& x,
                            int64_t tokens,
                            __nv_bfloat16* out,
                            int64_t out_stride,
                            const Launch& launch);
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const QuantizedRows& x,
                            int64_t tokens,
                            float* out,
                            int64_t out_stride,
                            const Launch& launch);
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const Bf16Rows& x,
                            int64_t tokens,
                            __nv_bfloat16* out,
                            int64_t out_stride,
                            const Launch& launch);
cudaError_t fp8_gemm_decode(const TiledMatrix& w,
                            const Bf16Rows& x,
                            int64_t tokens,
                            float* out,
                            int64_t out_stride,
                            const Launch& launch);

// out[t, i] = silu(gate(t, i)) * up(t, i), i < w.intermediate, with gate and up the two products in
// f32 (not rounded before the activation). Otherwise as above.
cudaError_t fp8_gate_up_decode(const TiledGateUp& w,
                               const QuantizedRows& x,
                               int64_t tokens,
                               __nv_bfloat16* out,
                               int64_t out_stride,
                               const Launch& launch);
cudaError_t fp8_gate_up_decode(const TiledGateUp& w,
                               const Bf16Rows& x,
                               int64_t tokens,
                               __nv_bfloat16* out,
                               int64_t out_stride,
                               const Launch& launch);

}  // namespace r1d::kernels
