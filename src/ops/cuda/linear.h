// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <absl/status/status.h>
#include <cuda_bf16.h>

#include "r1d/device/cuda.h"

#include "kernels/common/layout.h"
#include "ops/cuda/arena.h"
#include "ops/cuda/launches.h"
#include "ops/cuda/prepared.h"

namespace r1d::ops::cuda {

// Rows of activations: bf16, and the same quantized where a kernel before has made them.
struct Rows {
  const __nv_bfloat16* data = nullptr;
  int64_t stride = 0;
  kernels::QuantizedRows quantized;  // data == nullptr: there are none
};

struct Output {
  void* data = nullptr;
  int64_t stride = 0;
  bool f32 = false;
};

// Which kernel multiplies: FP8 tiles on tensor cores (decode and prefill forms), bf16 through our
// streaming kernel or cuBLASLt, everything else through the generic one.
class LinearKernels {
 public:
  struct Options {
    int capability = 90;
    bool deterministic = false;  // one kernel whatever the number of tokens
  };
  LinearKernels(const Options& options,
                const device::Stream& stream,
                Launches& launches,
                device::BlasLt& blas)
      : options_(options), stream_(stream), launches_(launches), blas_(blas) {}

  // Scratch for rows that must be quantized first: `cols` at most.
  void layout(Arena& arena, int64_t max_tokens, int64_t cols) {
    scratch_ = arena.take_quantized(max_tokens, cols);
  }

  // out [tokens, weight.rows] = x weight^T. Enqueues.
  absl::Status multiply(
      Kind kind, const Linear& weight, const Rows& x, int64_t tokens, const Output& out);

  // Where a kernel may leave rows of `cols` values as codes for the product behind it.
  [[nodiscard]] kernels::QuantizedRows scratch(int64_t cols) const {
    kernels::QuantizedRows rows = scratch_;
    rows.cols = cols;
    return rows;
  }

  // Quantizes `x` into the scratch, or says what it already is.
  absl::StatusOr<kernels::QuantizedRows> quantized(Kind kind,
                                                   const Rows& x,
                                                   int64_t tokens,
                                                   int64_t cols);

  [[nodiscard]] bool takes_decode_form(int64_t tokens) const;

 private:
  absl::Status multiply_tiled(Kind kind,
                              const Cost& cost,
                              const kernels::TiledMatrix& weight,
                              const Rows& x,
                              int64_t tokens,
                              const Output& out);
  absl::Status multiply_bf16(Kind kind,
                             const Cost& cost,
                             const Matrix& weight,
                             const Rows& x,
                             int64_t tokens,
                             const Output& out);

  const Options options_;
  const device::Stream& stream_;
  Launches& launches_;
  device::BlasLt& blas_;
  kernels::QuantizedRows scratch_;
};

}  // namespace r1d::ops::cuda
