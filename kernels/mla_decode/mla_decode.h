// SPDX-License-Identifier: Apache-2.0
// Multi-head latent attention for decode in its absorbed form (DeepSeek-V2 report, section 2.1):
// the key half of kv_b moves into the query, the value half behind the sum, so that all heads of a
// token share one cached row of 512 + 64 values that is both key and value.
//
// A layer calls, in this order and with nothing between them on the stream,
//   mla_absorb_queries   q [T, H, 192]            -> q_latent [T, H, 576]
//   mla_decode           q_latent, latent cache   -> workspace (sums, whole or in splits)
//   mla_expand_values    workspace                -> attention output [T, H * 128], bf16 or e4m3
// or mla_attend, which is the three; mla_plan comes once a step before all layers.
// Everything enqueues on launch.stream, does not synchronise and can be captured; lengths and lists
// are read on the device, grids follow from MlaShape alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "r1d/ops/tensor.h"

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels {

// The model's sizes; the kernels are compiled for exactly these.
struct MlaDims {
  int64_t latent = 512;     // kv_lora_rank
  int64_t rope = 64;        // qk_rope_head_dim
  int64_t nope = 128;       // qk_nope_head_dim
  int64_t value = 128;      // v_head_dim
  int64_t heads = 16;       // of the rank: 8, 16, 32, 64, 96 or 128
  int32_t block_size = 64;  // tokens: 16, 32 or 64
};
bool mla_decode_serves(const MlaDims& dims);

// What fixes grids and layouts of a step; the same for all its calls.
struct MlaShape {
  int32_t heads = 16;
  int32_t num_tokens = 0;     // T, padding included
  int32_t num_sequences = 0;  // padding included, at most 4096
  int32_t max_query_len = 1;  // 1..4: the largest query_len of any sequence
  int32_t num_sms = 132;      // of the device
  // true: a token's bits do not depend on the rest of the batch (splits of 512 tokens). false: the
  // cache is cut evenly over the SMs, wherever that falls.
  bool deterministic = false;
};

// ---- at load -----------------------------------------------------------------------------------

// kv_b of one layer in the kernels' layouts, bf16.
struct MlaWeights {
  const void* uk = nullptr;  // W_UK as register fragments, H * 128 * 512 values
  const void* uv = nullptr;  // W_UV as register fragments, H * 128 * 512 values
};
size_t mla_absorbed_bytes(int32_t heads);  // of both together
// Fills `to` (mla_absorbed_bytes(heads) bytes, 256-byte aligned) from kv_b [H * (128 + 128), 512]
// (per head 128 rows of W_UK, then 128 of W_UV), bf16 or e4m3 with block scales (offsets 0).
// e4m3 * scale is rounded to bf16.
cudaError_t mla_absorb_weights(const ops::Matrix& kv_b,
                               int32_t heads,
                               void* to,
                               const Launch& launch);
MlaWeights mla_weights(const void* absorbed, int32_t heads);

// ---- once a step -------------------------------------------------------------------------------

// The step's division of work on the device, shared by all layers.
size_t mla_plan_bytes(const MlaShape& shape);
// `plan`: mla_plan_bytes(shape) bytes, 32-byte aligned.
// NOTE: mla_decode reads the plan and the block ids ahead of the kernels before it. So the first
// kernel behind mla_plan in the stream must be enqueued without programmatic launch.
cudaError_t mla_plan(const StepSequences& sequences,
                     const MlaShape& shape,
                     void* plan,
                     const Launch& launch);

// ---- once a layer ------------------------------------------------------------------------------

struct MlaRope {
  const float* table = nullptr;  // [T, 64]: a token's 32 cosines, then its 32 sines
  bool interleave = true;        // pairs (2i, 2i + 1), else (i, i + 32)
};

// q_latent[t, h] = (W_UK[h]^T q_nope | rotated q_rope) * softmax_scale * log2(e).
// q bf16 [T, H, 192] (128 nope | 64 rope, not yet rotated), 16-byte aligned, dense;
// q_latent bf16 [T, H, 576], 128-byte aligned.
cudaError_t mla_absorb_queries(const void* q,
                               const MlaWeights& weights,
                               const MlaRope& rope,
                               float softmax_scale,
                               const MlaShape& shape,
                               void* q_latent,
                               const Launch& launch);

// Scores, softmax and sum over each sequence's cached rows (query token i of n sees the first
// context_len - n + 1 + i). cache: bf16, width 576, 128-byte aligned, num_blocks blocks.
// workspace: mla_workspace_bytes(shape) bytes, 256-byte aligned, need not be initialised.
// NOTE: under programmatic launch it reads cached rows of earlier steps ahead of the kernels before
// it; rows of this step's query tokens (the last query_len of context_len) it waits for. Nothing in
// the same step may write other rows of these sequences.
size_t mla_workspace_bytes(const MlaShape& shape);
cudaError_t mla_decode(const void* q_latent,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const StepSequences& sequences,
                       const MlaShape& shape,
                       const void* plan,
                       void* workspace,
                       const Launch& launch);

// Where the attention output goes: bf16 rows, the same rows quantized (to exactly what
// quantize_rows() makes of the bf16 ones), or both.
struct MlaOutput {
  __nv_bfloat16* bf16 = nullptr;  // [T, H * 128], 16-byte aligned; null: not wanted
  QuantizedRows quantized = {};   // cols H * 128; data == nullptr: not wanted
};

// out[t, h] = W_UV[h] o_latent[t, h]; o_latent is merged from the splits on the way. Tokens of
// padding sequences (context_len 0), and tokens that belong to no sequence, give zeros.
cudaError_t mla_expand_values(const void* workspace,
                              const MlaWeights& weights,
                              const MlaShape& shape,
                              const void* plan,
                              const MlaOutput& out,
                              const Launch& launch);

// The three above. q_latent: scratch, bf16 [T, H, 576].
struct MlaStep {
  MlaShape shape;
  StepSequences sequences;
  MlaRope rope;
  float softmax_scale = 0;
  const void* plan = nullptr;
  void* q_latent = nullptr;
  void* workspace = nullptr;
};
cudaError_t mla_attend(const void* q,
                       const MlaWeights& weights,
                       const LatentCache& cache,
                       int64_t num_blocks,
                       const MlaStep& step,
                       const MlaOutput& out,
                       const Launch& launch);

}  // namespace r1d::kernels
