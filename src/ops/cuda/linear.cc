// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/linear.h"

#include <algorithm>

#include "r1d/base/status.h"

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "kernels/generic/generic.h"
#include "kernels/lm_head/lm_head.h"
#include "kernels/quantize/quantize.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

// Above so many tokens the prefill form is the faster one (docs/performance.md).
constexpr int64_t kDecodeTokens = 32;
// Up to so many tokens a decode product quantizes its rows itself; above, doing it once in a launch
// of its own is cheaper than doing it in every block.
constexpr int64_t kSelfQuantizedTokens = 2;

Cost linear_cost(const Linear& weight, int64_t tokens, const Output& out) {
  const int64_t x_bytes = tokens * weight.cols() * (weight.is_tiled() ? 1 : 2);
  const int64_t out_bytes = tokens * weight.rows() * (out.f32 ? 4 : 2);
  return {.bytes = static_cast<double>(weight.bytes() + x_bytes + out_bytes),
          .flops = 2.0 * static_cast<double>(tokens) * static_cast<double>(weight.rows()) *
                   static_cast<double>(weight.cols())};
}

bool aligned_16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

bool LinearKernels::takes_decode_form(int64_t tokens) const {
  return tokens <= kDecodeTokens && !options_.deterministic;
}

absl::StatusOr<kernels::QuantizedRows> LinearKernels::quantized(Kind kind,
                                                                const Rows& x,
                                                                int64_t tokens,
                                                                int64_t cols) {
  if (x.quantized.data != nullptr) return x.quantized;
  const kernels::QuantizedRows rows = scratch(cols);
  const Cost cost{.bytes = 3.0 * static_cast<double>(tokens) * static_cast<double>(cols)};
  R1D_RETURN_IF_ERROR(launches_(kind, cost, [&](const Launch& launch) {
    return kernels::quantize_rows(x.data, x.stride, tokens, rows, launch);
  }));
  return rows;
}

absl::Status LinearKernels::multiply(
    Kind kind, const Linear& weight, const Rows& x, int64_t tokens, const Output& out) {
  if (tokens == 0) return absl::OkStatus();
  const Cost cost = linear_cost(weight, tokens, out);
  if (weight.is_tiled()) return multiply_tiled(kind, cost, weight.tiled, x, tokens, out);
  const Matrix& raw = weight.raw;
  const bool streams = raw.dtype == DType::kBF16 && raw.cols % 8 == 0 && x.stride % 8 == 0 &&
                       aligned_16(raw.data) && aligned_16(x.data);
  if (streams) return multiply_bf16(kind, cost, raw, x, tokens, out);
  return launches_(kind, cost, [&](const Launch& launch) {
    return kernels::generic::gemm({.weights = raw,
                                   .x = x.data,
                                   .x_stride = x.stride,
                                   .num_tokens = tokens,
                                   .out = out.data,
                                   .out_stride = out.stride,
                                   .out_dtype = out.f32 ? DType::kF32 : DType::kBF16,
                                   .exact = raw.dtype == DType::kF32},
                                  launch);
  });
}

absl::Status LinearKernels::multiply_tiled(Kind kind,
                                           const Cost& cost,
                                           const kernels::TiledMatrix& weight,
                                           const Rows& x,
                                           int64_t tokens,
                                           const Output& out) {
  if (takes_decode_form(tokens) && tokens <= kSelfQuantizedTokens && x.quantized.data == nullptr) {
    const kernels::Bf16Rows rows{.data = x.data, .stride = x.stride};
    return launches_(kind, cost, [&](const Launch& launch) {
      return kernels::fp8_gemm_decode(
          weight, rows, tokens, static_cast<__nv_bfloat16*>(out.data), out.stride, launch);
    });
  }
  R1D_ASSIGN_OR_RETURN(const kernels::QuantizedRows rows, quantized(kind, x, tokens, weight.cols));
  return launches_(kind, cost, [&](const Launch& launch) {
    auto* to = static_cast<__nv_bfloat16*>(out.data);
    if (takes_decode_form(tokens)) {
      return kernels::fp8_gemm_decode(weight, rows, tokens, to, out.stride, launch);
    }
    return kernels::fp8_gemm_prefill(
        weight, rows, static_cast<int32_t>(tokens), to, out.stride, options_.deterministic, launch);
  });
}

absl::Status LinearKernels::multiply_bf16(Kind kind,
                                          const Cost& cost,
                                          const Matrix& weight,
                                          const Rows& x,
                                          int64_t tokens,
                                          const Output& out) {
  constexpr int64_t kMost = kernels::Bf16GemmDecode::kMaxRows;
  constexpr int64_t kMostStreamed = 128;  // above, cuBLASLt is the faster one
  if (tokens > kMostStreamed && !options_.deterministic) {
    return launches_.library(kind, cost, [&] {
      return blas_.multiply({.x = x.data,
                             .x_stride = x.stride,
                             .w = weight.data,
                             .w_stride = weight.cols,
                             .out = out.data,
                             .out_stride = out.stride,
                             .m = tokens,
                             .n = weight.rows,
                             .k = weight.cols,
                             .f32_out = out.f32},
                            stream_);
    });
  }
  const int64_t width = out.f32 ? 4 : 2;
  for (int64_t first = 0; first < tokens; first += kMost) {
    R1D_RETURN_IF_ERROR(launches_(kind, first == 0 ? cost : Cost{}, [&](const Launch& launch) {
      return kernels::bf16_gemm_decode(
          {.w = static_cast<const __nv_bfloat16*>(weight.data),
           .x = x.data + first * x.stride,
           .x_stride = x.stride,
           .m = std::min(kMost, tokens - first),
           .n = weight.rows,
           .k = weight.cols,
           .out = static_cast<std::byte*>(out.data) + first * out.stride * width,
           .out_bf16 = !out.f32,
           .out_stride = out.stride,
           .deterministic = options_.deterministic,
           .capability = options_.capability},
          launch);
    }));
  }
  return absl::OkStatus();
}

}  // namespace r1d::ops::cuda
