// SPDX-License-Identifier: Apache-2.0
// How a decode product is cut over the GPU: pure host arithmetic, and the launcher that takes the
// cut as given (the benchmark tries others).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

struct DecodePlan {
  int split = 0;   // CTAs of a cluster that share the sum over k of one 64-row strip; 1..8
  int stages = 0;  // 8 KB weight tiles in a CTA's shared memory
};

enum class DecodeOutput : uint8_t { kBf16, kF32, kSiluTimesUp };

// What the kernel reads and writes; exactly one of x_codes and x_rows is set.
struct DecodeArguments {
  const uint8_t* tiles = nullptr;
  // Of rows 0..7 and 8..15 of every 16; [ceil(strips / strips_per_scale), k_blocks].
  const float* scale[2] = {};
  int strips = 0;
  int strips_per_scale = 2;
  int k_blocks = 0;
  int tokens = 0;
  const uint8_t* x_codes = nullptr;
  const float* x_scale = nullptr;
  int64_t x_scale_stride = 0;
  const __nv_bfloat16* x_rows = nullptr;
  int64_t x_stride = 0;
  void* out = nullptr;
  int64_t out_stride = 0;
  DecodeOutput output = DecodeOutput::kBf16;
  DecodePlan plan;
  // Filled in by enqueue_decode().
  int slice_blocks = 0;  // of k, a CTA
  int long_slices = 0;   // the first CTAs of a cluster, which take one block more
  int log_tokens = 0;    // of a pass, rounded up
};

// The most tokens a CTA holds; more make a second row of CTAs.
inline constexpr int kDecodeTokensPerPass = 64;

// The split depends on (strips, k_blocks) alone, so that results do not depend on the batch; the
// stages also on tokens.
int decode_split(int64_t strips, int64_t k_blocks);
int decode_stages(int64_t strips, int64_t k_blocks, int64_t tokens, int split);
// Shared memory of a CTA.
size_t decode_shared_bytes(int64_t k_blocks, int64_t tokens, const DecodePlan& plan);

cudaError_t enqueue_decode(DecodeArguments arguments, const Launch& launch);

}  // namespace r1d::kernels
