// SPDX-License-Identifier: Apache-2.0
// The layouts in device memory that kernels share. Plain structs over device pointers; nothing is
// owned.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

#include "r1d/ops/latent_format.h"

namespace r1d::kernels {

// e4m3 rows with one scale per 128 columns: x(t, k) = data[t * cols + k] * scale[(k / 128) *
// scale_stride + t]. Scale of a group: largest magnitude / 448 (1 for a group of zeros); data = x /
// scale, rounded to nearest even. Source: DeepSeek-V3 report, section 3.3.2 (1x128 tiles).
struct QuantizedRows {
  uint8_t* data = nullptr;  // [rows, cols], cols a multiple of 128; 1024-byte aligned
  float* scale = nullptr;   // [cols / 128, scale_stride], column block major; 16-byte aligned
  int64_t cols = 0;
  int64_t scale_stride = 0;  // rows that fit; a multiple of 4
};

// An FP8 weight [rows, cols] cut into tiles of 64 rows x 128 columns, each 8192 contiguous bytes in
// exactly the form that a wgmma operand has in shared memory (K-major, 128-byte swizzle: the
// 16-byte chunk c of row r stands at r * 128 + ((c ^ (r % 8)) * 16)). Tile (i, j) of rows 64 i..,
// columns 128 j.. is number i * (cols / 128) + j, so a strip of 64 rows is contiguous. w(r, k) =
// e4m3 * scale[(r / 128) * (cols / 128) + k / 128].
struct TiledMatrix {
  static constexpr int kTileRows = 64;
  static constexpr int kTileCols = 128;
  static constexpr int kTileBytes = kTileRows * kTileCols;
  const uint8_t* tiles = nullptr;  // 128-byte aligned
  const float* scale = nullptr;    // [ceil(rows / 128), cols / 128]
  int64_t rows = 0;                // a multiple of 64
  int64_t cols = 0;                // a multiple of 128
};

// gate and up [I, cols] of an MLP as one tiled matrix of 2 I rows, so that one thread of a product
// holds a gate value and its up value: row 16 p + j (j < 8) is gate row 8 p + j, row 16 p + 8 + j
// is up row 8 p + j. A 64-row tile so holds 32 gate and 32 up rows. I is a multiple of 32. Scales
// stay apart, each [ceil(I / 128), cols / 128].
struct TiledGateUp {
  const uint8_t* tiles = nullptr;
  const float* gate_scale = nullptr;
  const float* up_scale = nullptr;
  int64_t intermediate = 0;  // I
  int64_t cols = 0;
};

// One layer's latent cache; a token is c (latent values, normed) | k_pe (rope values, rotated),
// `width` values, stored as ops::LatentFormat says.
struct LatentCache {
  void* data = nullptr;  // num_blocks blocks of block_size tokens
  int32_t block_size = 0;
  int32_t width = 0;
  DType dtype = DType::kBF16;
};

// A step's sequences on the device. Sequence s owns query tokens [query_begin[s], query_begin[s] +
// query_len[s]), which are its last positions of context_len[s]; its block ids are
// block_ids[block_begin[s] ...]. A padding sequence of a graph has query_len 1 and context_len 0:
// it writes nothing and its outputs are zeros.
struct StepSequences {
  const int32_t* query_begin = nullptr;  // [num_sequences]
  const int32_t* query_len = nullptr;
  const int32_t* context_len = nullptr;
  const int32_t* block_begin = nullptr;
  const int32_t* block_ids = nullptr;
  int32_t num_sequences = 0;
};

}  // namespace r1d::kernels
