// SPDX-License-Identifier: Apache-2.0
// Attention of prefill in MLA's naive (unabsorbed) form: keys and values of every position are
// rebuilt from the latents, then H heads attend with 192 values a key (128 nope | 64 rope) and 128
// values a value. bf16 in, f32 accumulation, bf16 or e4m3 out.
//
// The order of one layer:
//   1. gather_latents:  paged cache -> packed key rows c, k_pe          (all sequences of the step)
//   2. a GEMM:          c x kv_b -> kv [S, H, 256]                      (not here)
//   3. rotate_queries:  q's 64 rope values, in place
//   4. mla_prefill:     q, kv, k_pe -> out [T, H * 128]
// A step whose keys do not fit the key buffer repeats 1, 2 and 4 for windows of positions
// (MlaPrefillState).
//
// Lengths live on the host: it fills one PrefillSequence per sequence, plans the tiles once per
// step (plan_mla_prefill), and copies both arrays to the device for all layers.
#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>
#include <vector>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

inline constexpr int kMlaNopeDim = 128;
inline constexpr int kMlaRopeDim = 64;
inline constexpr int kMlaQueryDim = kMlaNopeDim + kMlaRopeDim;
inline constexpr int kMlaValueDim = 128;
inline constexpr int kMlaLatentDim = 512;

// One sequence of a step, and which of its positions the key buffer holds: all of them, or one
// window.
struct PrefillSequence {
  int32_t query_begin = 0;  // its first row in q and out
  int32_t query_len = 0;    // its tokens of this step, the last positions of context_len
  int32_t context_len = 0;  // positions with a latent in the cache, this step's included
  int32_t block_begin = 0;  // where its block ids start in block_ids
  // The key buffer holds positions position_begin .. position_begin + num_positions - 1 from row
  // key_begin on. Without windows: 0 and context_len. Sequences lie there in their order.
  int32_t position_begin = 0;
  int32_t num_positions = 0;
  int32_t key_begin = 0;
};

// Up to 128 query rows of one sequence, for every head. Row r sees the keys key_begin ..
// key_begin + min(num_keys, first_visible + r) - 1; first_visible may be negative (a window behind
// the row).
struct MlaPrefillTile {
  int32_t query_begin = 0;    // first row in q and out
  int32_t num_rows = 0;       // 1 .. 128
  int32_t key_begin = 0;      // key row of the sequence's first position in the buffer
  int32_t num_keys = 0;       // the sequence's positions in the buffer
  int32_t first_visible = 0;  // keys that row 0 sees
};

// The tiles of a step, longest first. Pure host code. Every query row is in exactly one tile, also
// one that sees no key.
std::vector<MlaPrefillTile> plan_mla_prefill(const PrefillSequence* sequences, int num_sequences);

// Copies the latents of every sequence's positions position_begin .. position_begin + num_positions
// - 1 from the paged cache to packed key rows.
struct GatherLatents {
  LatentCache cache;                   // bf16 or e4m3, width 576: c 512 | k_pe 64; 16-byte aligned
  const int32_t* block_ids = nullptr;  // device
  const PrefillSequence* sequences = nullptr;  // device [num_sequences], key_begin ascending
  int32_t num_sequences = 0;
  int64_t num_keys =
      0;  // S: end of the last sequence's key rows; rows of no sequence are not written
  __nv_bfloat16* k_pe = nullptr;  // out [S, 64], 16-byte aligned
};
// c bf16 [S, 512], 16-byte aligned.
cudaError_t gather_latents(const GatherLatents& gather, __nv_bfloat16* c, const Launch& launch);
// c quantised per row and 128 columns (cols 512), for an FP8 kv_b. An e4m3 cache's codes and scales
// come as they are: nothing is rounded again. In bf16 they are exact too.
cudaError_t gather_latents(const GatherLatents& gather,
                           const QuantizedRows& c,
                           const Launch& launch);

// Rotates the last 64 values of every head of q bf16 [T, H, 192] (16-byte aligned) in place.
// cos_sin f32 [T, 64]: row t has 32 cosines, then 32 sines of token t's position. Pair i is (2 i, 2
// i + 1) when `interleave`, else (i, i + 32): (x, y) -> (x cos - y sin, x sin + y cos), stored
// where the pair was. f32 arithmetic, rounded once.
cudaError_t rotate_queries(__nv_bfloat16* q,
                           const float* cos_sin,
                           int64_t num_tokens,
                           int64_t num_heads,
                           bool interleave,
                           const Launch& launch);

// What lets one attention take several launches, each over a window of positions, in any order: the
// normalised output so far and its log-sum-exp (base 2, of scaled scores), both f32. The first
// launch starts it, every launch merges its window into it (exact: o = sum of o_i 2^(lse_i - lse)),
// the last one writes `out` or `codes` instead.
struct MlaPrefillState {
  float* out = nullptr;  // [T, H * 128], 16-byte aligned; null: one launch does all
  float* lse = nullptr;  // [T, H]
  bool first = true;
  bool last = true;
};

struct MlaPrefill {
  const __nv_bfloat16* q = nullptr;     // [T, H, 192], rotated
  const __nv_bfloat16* kv = nullptr;    // [S, H, 256]: per head 128 nope | 128 v
  const __nv_bfloat16* k_pe = nullptr;  // [S, 64], shared by the heads
  __nv_bfloat16* out = nullptr;         // [T, H * 128]; rows of no tile are not written
  // Where its data is not null the output goes here instead, quantized as quantize_rows would
  // quantize `out`: cols H * 128, a head is a group.
  QuantizedRows codes;
  int64_t num_tokens = 0;                 // T
  int64_t num_keys = 0;                   // S: valid key rows; rows behind it are never read
  int64_t num_heads = 0;                  // H, of this rank
  float scale = 0;                        // of q k, YaRN's factor included
  const MlaPrefillTile* tiles = nullptr;  // device [num_tiles], from plan_mla_prefill
  int32_t num_tiles = 0;
  int32_t num_sms = 132;  // CTAs at most
  // Device, one value: hands out tiles. Zero before the first launch ever; every launch leaves it
  // zero. Launches that may run at the same time need one each.
  uint32_t* counter = nullptr;
  MlaPrefillState state;
};
// All pointers 16-byte aligned. Enqueues one kernel. A token's bits depend on its sequence's keys
// and windows alone, not on the batch or the chunking of queries. sm_90a only.
cudaError_t mla_prefill(const MlaPrefill& problem, const Launch& launch);

// Flops that mla_prefill owes, each visible key of each row counted once (the causal half).
double mla_prefill_flops(const PrefillSequence* sequences, int num_sequences, int64_t num_heads);

}  // namespace r1d::kernels
