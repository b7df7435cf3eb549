// SPDX-License-Identifier: Apache-2.0
// Routed experts for many tokens: (token, slot) pairs sorted by expert, one grouped gate_up product
// that gathers its token rows, one grouped down product, and the weighted sum of each token's
// expert rows. sm_90a.
//
//   moe_expert_lists   experts [T, k]     -> lists: each expert's pairs, the tiles of the products
//   moe_gate_up        x [T, D], lists    -> h [T k, I] e4m3, rows in list order
//   moe_down_combine   h, lists, weights  -> out [T, D]: this rank's partial sum, the shared
//                                            expert's output included
//   moe_down_slabs     the same in one kernel, for many tokens and I = 256
//
// Every reduction has a fixed order: a token's result bits depend on its own x, experts and weights
// alone.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// Most rows of one tile of the grouped products.
inline constexpr int32_t kMoeTileRows = 64;
// The same of those that gate_up takes where an expert has many rows.
inline constexpr int32_t kMoeWideRows = 128;
// Counts of moe_down_slabs.
inline constexpr int32_t kMoeProgress = 257;

// The pairs of one layer, sorted. A row is one (token, slot) pair of a local expert; rows of an
// expert are contiguous and in pair order (pair = token * k + slot). Owned by the caller, device
// memory, 16-byte aligned.
struct PairLists {
  int32_t* row_pair = nullptr;    // [T * k] pair of each row; rows beyond the total are not written
  int32_t* pair_row = nullptr;    // [T * k] row of each pair, -1 for an expert of another rank
  int32_t* tiles = nullptr;       // [moe_max_tiles, 4] local expert, first row, rows (1 .. 64), 0
  int32_t* wide_tiles = nullptr;  // [moe_max_wide_tiles, 4] the same with up to 128 rows; those
                                  // with more than 64 come first
  int32_t* totals = nullptr;      // [3] number of tiles, number of rows, number of wide tiles
  int32_t* progress = nullptr;    // [kMoeProgress] zeroed once; moe_down_slabs leaves zeros
};

// Tiles that lists of up to this many tokens may hold.
[[nodiscard]] int64_t moe_max_tiles(int64_t tokens, int32_t k, int32_t num_local);
[[nodiscard]] int64_t moe_max_wide_tiles(int64_t tokens, int32_t k, int32_t num_local);

// experts [tokens, k] i32: ids of all ranks' experts; this rank holds first_expert .. first_expert
// + num_local - 1. A negative id is no expert. tokens * k below 2^24, num_local 1 to 256. One
// launch (clusters of 8 CTAs).
[[nodiscard]] cudaError_t moe_expert_lists(const int32_t* experts,
                                           int32_t tokens,
                                           int32_t k,
                                           int32_t first_expert,
                                           int32_t num_local,
                                           const PairLists& lists,
                                           const Launch& launch);

// All local experts' gate_up: expert e's tiles begin e * tiles_stride bytes after `first.tiles`,
// its scales e * scale_stride floats after first.gate_scale and first.up_scale.
struct ExpertGateUp {
  TiledGateUp first;
  int64_t tiles_stride = 0;  // bytes, a multiple of 128
  int64_t scale_stride = 0;
};
struct ExpertDown {
  TiledMatrix first;
  int64_t tiles_stride = 0;  // bytes, a multiple of 128
  int64_t scale_stride = 0;
};

// h(row, :) = silu(gate x) (up x) of the row's token under the row's expert, quantized to 1 x 128
// groups. x: QuantizedRows of at least `tokens` rows. I and D multiples of 128. h: cols == I, at
// least tokens * k rows. `lists` as moe_expert_lists wrote them for (tokens, k, num_local).
[[nodiscard]] cudaError_t moe_gate_up(const ExpertGateUp& weight,
                                      const QuantizedRows& x,
                                      int32_t tokens,
                                      int32_t k,
                                      const PairLists& lists,
                                      const QuantizedRows& h,
                                      const Launch& launch);

// Columns of D that moe_down_combine should take at a time: all, unless the rows of all experts
// would need more than 480 MB of scratch. (Blocks small enough for the L2 cache measure slower.)
[[nodiscard]] int64_t moe_down_block(int64_t tokens, int32_t k, int64_t dim);

// out[t, :] = bf16(shared[t, :] + sum over slots s in order of weights[t, s] y(t, s)), the sum in
// f32, y(t, s) = bf16(down h(row of (t, s))). Slots of other ranks' experts are skipped.
//
// weights     [tokens, k] f32.
// shared      [tokens, D] bf16, 16-byte aligned, or null.
// out         [tokens, D] bf16, 16-byte aligned; may be `shared`.
// scratch     [tokens * k, block_cols] bf16, 16-byte aligned.
// block_cols  a multiple of 256; the bits of `out` do not depend on it.
// D a multiple of 64, k at most 16. Enqueues two kernels per block of columns.
[[nodiscard]] cudaError_t moe_down_combine(const ExpertDown& weight,
                                           const QuantizedRows& h,
                                           const PairLists& lists,
                                           const float* weights,
                                           const __nv_bfloat16* shared,
                                           int32_t tokens,
                                           int32_t k,
                                           __nv_bfloat16* scratch,
                                           int64_t block_cols,
                                           __nv_bfloat16* out,
                                           const Launch& launch);

// The same, bit for bit, for I = 256 in one kernel that keeps y in the L2 cache: faster from some
// 6000 tokens on. `lists` as moe_expert_lists wrote them for num_local experts.
//
// num_sms  of the device: one block for each.
// scratch  as for a block of 256 columns.
//
// All blocks of the kernel wait for each other: no kernel that waits for this one's end may hold
// the device's multiprocessors.
[[nodiscard]] bool moe_down_slabs_serves(int64_t tokens,
                                         int32_t k,
                                         int32_t num_local,
                                         int64_t dim,
                                         int64_t intermediate,
                                         int32_t num_sms);
[[nodiscard]] cudaError_t moe_down_slabs(const ExpertDown& weight,
                                         const QuantizedRows& h,
                                         const PairLists& lists,
                                         int32_t num_local,
                                         const float* weights,
                                         const __nv_bfloat16* shared,
                                         int32_t tokens,
                                         int32_t k,
                                         int32_t num_sms,
                                         __nv_bfloat16* scratch,
                                         __nv_bfloat16* out,
                                         const Launch& launch);

}  // namespace r1d::kernels
