// SPDX-License-Identifier: Apache-2.0
// RMS norms of a layer: plain, with the residual addition in front, and the split form after MLA's
// fused q_a | kv_a product. All: y = bf16(x * rsqrt(mean(x^2) + eps) * weight), sums in f32 in an
// order that depends on the row's length alone, so a token's bits do not depend on the batch.
//
// Any sizes; fast where lengths and strides are multiples of 8 and pointers 16-byte aligned (rows
// to 32768 values, the split form's to 8192). A quantized output asks for these and for a length
// that is a multiple of 128. Weights are read before the dependency wait: no kernel may write them.
// Launchers enqueue, never synchronise; no token: nothing is enqueued. cudaErrorInvalidValue: a
// null input, a negative size, or what is said above of quantized outputs.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// Where a normed row goes; both, either or (add_norm, for the residual alone) none. The quantized
// form is that of the values as rounded to bf16, so both outputs say the same. quantized.cols must
// equal the row's length.
struct NormOutput {
  __nv_bfloat16* bf16 = nullptr;  // [T, D]
  int64_t stride = 0;             // elements between rows; 0: D
  QuantizedRows quantized = {};   // data == nullptr: not wanted
};

struct RmsNorm {
  const __nv_bfloat16* x = nullptr;  // [T, D]
  int64_t x_stride = 0;              // elements; 0: D
  const float* weight = nullptr;     // [D]
  float eps = 1e-6F;
  int64_t tokens = 0;   // T
  int64_t cols = 0;     // D
  NormOutput out = {};  // may be x itself
  int capability = 90;  // of the device; clusters are used from 90 on
};
cudaError_t rms_norm(const RmsNorm& a, const Launch& launch);

// residual = bf16(residual + (part 0 + part 1 + ...)), the parts summed in order in f32; then the
// norm of the new residual, as rounded. parts == 0: the residual stays as it is and is only normed.
struct AddNorm {
  static constexpr int kMaxParts = 16;
  const void* partial = nullptr;  // [parts][T, D], bf16, or f32 when partial_f32
  bool partial_f32 = false;
  int32_t parts = 1;                  // 0 .. kMaxParts
  int64_t partial_stride = 0;         // elements between rows of a part; 0: D
  int64_t part_stride = 0;            // elements between parts; 0: T * partial_stride
  __nv_bfloat16* residual = nullptr;  // [T, D], updated in place
  int64_t residual_stride = 0;        // 0: D
  const float* weight = nullptr;      // [D]; may be null when no output is wanted
  float eps = 1e-6F;
  int64_t tokens = 0;
  int64_t cols = 0;
  NormOutput out = {};
  int capability = 90;
};
cudaError_t add_norm(const AddNorm& a, const Launch& launch);

// x[t] = q_low (q_lora values) | latent | k_pe (rope values), the fused product's row. Writes
// norm(q_low) to `q`, and norm(latent) | rotate(k_pe) in the cache's format at slots[t]
// (block * block_size + offset; -1: a padding token, no row is written). An e4m3 cache takes the
// norm's f32 value, not one rounded to bf16 first. Pairs are (2 i, 2 i + 1) when `interleave`, else
// (i, i + rope / 2); values stay where they were.
struct MlaSplitNorm {
  const __nv_bfloat16* x = nullptr;
  int64_t x_stride = 0;  // elements; 0: q_lora + latent + rope
  int64_t tokens = 0;
  int64_t q_lora = 0;  // 0: there is no low-rank query, `q` and q_weight are not looked at
  int64_t latent = 0;
  int64_t rope = 0;                  // even
  const float* q_weight = nullptr;   // [q_lora]
  const float* kv_weight = nullptr;  // [latent]
  float eps = 1e-6F;
  const float* cos_sin = nullptr;  // [T, rope] of rope.h: rope / 2 cosines, then rope / 2 sines
  bool interleave = true;
  NormOutput q = {};
  LatentCache cache = {};          // bf16 or e4m3, width == latent + rope
  const int64_t* slots = nullptr;  // [T], on the device
};
cudaError_t mla_split_norm(const MlaSplitNorm& a, const Launch& launch);

}  // namespace r1d::kernels
