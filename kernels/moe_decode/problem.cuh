// SPDX-License-Identifier: Apache-2.0
// What the forms of gate_up and down share.
#pragma once

#include <cstdint>

#include "kernels/common/ptx.cuh"
#include "kernels/moe_decode/moe_decode.h"

namespace r1d::kernels::moe {

constexpr int kColumns = 128;  // a scale's block of columns
constexpr int kTileBytes = TiledMatrix::kTileBytes;
constexpr int kAtomBytes = 1024;  // 8 rows x 128 bytes, the unit of the swizzle
constexpr int kStrips = 4;        // 64-row strips of gate_up to 128 columns of h

// Everything that the kernels read.
struct Problem {
  QuantizedRows x;
  const float* weights;
  ExpertLists lists;
  RoutedExperts routed;
  SharedExpert shared;
  __nv_bfloat16* out;
  uint32_t* arrivals;  // zero between calls
  float2* partial;     // of units that several blocks share
  uint8_t* h;          // routed, then shared
  float* h_scale;
  uint8_t* shared_h;
  float* shared_h_scale;
  int num_tokens;
  int top_k;
  int max_blocks;
  int stages;
  int hidden_blocks;   // D / 128
  int routed_columns;  // I / 128
  int shared_columns;  // Is / 128, 0 without a shared expert
  int shared_blocks;   // token blocks of the shared expert
};

// One (token block, 128 columns of h).
struct Unit {
  bool shared;
  int columns;  // which 128
  int count;    // tokens
  int begin;    // first entry; the shared expert: first token
  int expert;
  int group;
};

// Both products for more than 8 tokens (many.cu).
inline constexpr int kFewTokens = 8;
// Bytes at Problem::partial.
size_t many_partial_bytes(int64_t hidden);
cudaError_t enqueue_many(Problem p, const Launch& launch);

}  // namespace r1d::kernels::moe
