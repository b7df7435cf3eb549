// SPDX-License-Identifier: Apache-2.0
// out[m, n] = sum_k w[n, k] x[row(m), k] for few rows: lm_head, and any bf16 Linear at decode.
// Reads the weight once.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

// How a product is cut.
struct Bf16GemmPlan {
  enum class Path : uint8_t { kWgmma, kMma };
  Path path = Path::kWgmma;
  int tile_rows = 64;   // of the weight, a CTA
  int tile_tokens = 8;  // a CTA
  int split = 1;        // CTAs of a cluster that share K
};
// Chosen from measurements (README.md). `capability` of the device: 90 takes wgmma, any other from
// 80 on mma.sync. The K split, and with it the order of a row's sum, is a function of N and K alone
// up to 128 rows, and up to 256 when `deterministic`: then a row's bits do not depend on the batch.
Bf16GemmPlan plan_bf16_gemm(int64_t m, int64_t n, int64_t k, int capability, bool deterministic);

struct Bf16GemmDecode {
  static constexpr int64_t kMaxRows = 256;
  const __nv_bfloat16* w = nullptr;  // [N, K], contiguous, 16-byte aligned
  const __nv_bfloat16* x = nullptr;  // rows of K values, 16-byte aligned, under 32 GB
  int64_t x_stride = 0;              // elements, a multiple of 8; 0: K
  const int32_t* rows = nullptr;     // [M], on the device; -1: zeros; null: 0 .. M - 1
  int64_t m = 0;                     // 0 .. kMaxRows
  int64_t n = 0;                     // any
  int64_t k = 0;                     // a multiple of 8
  void* out = nullptr;               // [M, N] f32, or bf16 when out_bf16
  bool out_bf16 = false;
  int64_t out_stride = 0;              // elements; 0: N
  bool deterministic = true;           // false: faster above 128 rows where N is small
  int capability = 90;                 // of the device
  const Bf16GemmPlan* plan = nullptr;  // null: plan_bf16_gemm's; benchmarks try others
};

// Enqueues, never synchronises; M or N of 0: nothing is enqueued. cudaErrorInvalidValue outside the
// limits above.
cudaError_t bf16_gemm_decode(const Bf16GemmDecode& a, const Launch& launch);

}  // namespace r1d::kernels
