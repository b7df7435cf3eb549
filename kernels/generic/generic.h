// SPDX-License-Identifier: Apache-2.0
// The path for every shape and every GPU from sm_80 on: weight products, routed experts and
// absorbed latent attention with no demand on sizes or alignment beyond an element's own. The small
// checkpoints and GPUs without wgmma run on it; the kernels made for one GPU's sizes live in their
// own folders.
//
// Weights are ops::Matrix as the checkpoint stores them (bf16, f32, or e4m3 with 128x128 scales
// whose first block a tensor-parallel slice may cut); an FP8 weight is widened in registers. Row
// major everywhere; strides are in elements and need no alignment, but rows of whole 16 bytes load
// faster. Outputs never alias inputs.
//
// Every function enqueues on launch.stream and returns the launch's error: cudaErrorInvalidValue
// for arguments it does not serve; nothing is enqueued for an empty problem. None waits, allocates
// or reads device memory on the host, so all can be captured in a graph.
//
// Batch invariance: the order in which an output element is summed depends on the weight's shape
// (attention: on the key positions) alone, so a token's result has the same bits in every batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime_api.h>

#include <cuda_bf16.h>

#include "r1d/ops/tensor.h"

#include "kernels/common/launch.h"
#include "kernels/common/layout.h"

namespace r1d::kernels::generic {

// ---- products ----------------------------------------------------------------------------------

// out[t, :] = x[t, :] W^T, summed in f32.
struct Gemm {
  ops::Matrix weights;               // [rows, cols]
  const __nv_bfloat16* x = nullptr;  // [num_tokens, cols]
  int64_t x_stride = 0;
  int64_t num_tokens = 0;
  void* out = nullptr;  // [num_tokens, rows]
  int64_t out_stride = 0;
  DType out_dtype = DType::kBF16;  // bf16 or f32
  // False: tensor cores on bf16 weights; f32 weights, and e4m3 * scale, are rounded to bf16 once.
  // True: weights keep their f32 value and are multiplied in f32 (the router, whose choices must
  // not flip).
  bool exact = false;
};
cudaError_t gemm(const Gemm& problem, const Launch& launch);

// ---- routed experts ----------------------------------------------------------------------------

// Which slots each expert of this rank serves. Slot t * k + j is choice j of token t. Expert e (0
// is the rank's first) serves slots[offset[e]] .. slots[offset[e + 1] - 1], ascending.
struct ExpertLists {
  int32_t* offset = nullptr;  // [num_experts + 1]
  int32_t* slots = nullptr;   // [num_slots]; only the first offset[num_experts] are written
};

// Fills the lists from the router's choices. experts [num_slots] i32, num_slots = T * k; ids
// outside [first_expert, first_expert + num_experts) are another rank's, or padding (-1).
cudaError_t build_lists(const int32_t* experts,
                        int64_t num_slots,
                        int32_t first_expert,
                        int32_t num_experts,
                        const ExpertLists& lists,
                        const Launch& launch);

// out[slot, :] = x[slot / slots_per_x_row, :] W_e^T for every slot of every expert e in `lists`;
// other rows of `out` stay as they are. bf16 outputs.
struct GroupedGemm {
  const ops::Matrix* weights =
      nullptr;                 // DEVICE array [num_experts], all of the same dtype, rows and cols
  DType dtype = DType::kBF16;  // theirs
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t num_experts = 0;
  ExpertLists lists;
  const __nv_bfloat16* x = nullptr;  // [num_slots / slots_per_x_row, cols]
  int64_t x_stride = 0;
  int32_t slots_per_x_row = 1;   // k for gate and up (x holds tokens), 1 for down (x holds slots)
  __nv_bfloat16* out = nullptr;  // [num_slots, rows]
  int64_t out_stride = 0;
  int64_t num_slots = 0;  // T * k
  int64_t max_count = 0;  // most slots one expert can have (T: a token takes an expert once)
};
cudaError_t grouped_gemm(const GroupedGemm& problem, const Launch& launch);

// out = silu(gate) * up in f32, rounded once. All [rows, cols] bf16. `out` may be `gate` or `up`.
cudaError_t swiglu(const __nv_bfloat16* gate,
                   int64_t gate_stride,
                   const __nv_bfloat16* up,
                   int64_t up_stride,
                   __nv_bfloat16* out,
                   int64_t out_stride,
                   int64_t rows,
                   int64_t cols,
                   const Launch& launch);

// out[t] = sum over j of weights[t, j] * rows[t * k + j], then + shared[t]; f32, in this order.
// Slots whose weight is 0 or whose expert is not in [first_expert, first_expert + num_experts)
// count as zero and their rows are not read.
struct CombineSlots {
  const __nv_bfloat16* rows = nullptr;  // [T * k, cols], dense
  const float* weights = nullptr;       // [T, k]
  const int32_t* experts = nullptr;     // [T, k]; null: every slot with a weight counts
  int32_t first_expert = 0;
  int32_t num_experts = 0;
  const __nv_bfloat16* shared = nullptr;  // [T, cols], dense; null: none
  __nv_bfloat16* out = nullptr;           // [T, cols]; may be `shared`
  int64_t out_stride = 0;
  int64_t num_tokens = 0;
  int32_t k = 0;
  int64_t cols = 0;
};
cudaError_t combine_slots(const CombineSlots& problem, const Launch& launch);

// ---- absorbed latent attention -----------------------------------------------------------------

// H heads on this rank, latent rank R. A query is nope | rope values per head, a cache row c (R) |
// k_pe (rope); kv_b is [H * (nope + v), R], per head the k_nope rows, then the v rows. Everything
// between q and the head outputs is f32.
struct AttentionDims {
  int32_t heads = 0;   // H
  int32_t latent = 0;  // R
  int32_t nope = 0;
  int32_t rope = 0;  // even
  int32_t v = 0;
};

// q_latent[t, h] = q_nope W_uk (R values) | rotated q_pe (rope values).
struct Absorb {
  AttentionDims dims;
  ops::Matrix kv_b;
  const __nv_bfloat16* q = nullptr;  // [T, H * (nope + rope)]
  int64_t q_stride = 0;
  const float* cos_sin = nullptr;  // [T, rope]: rope/2 cosines, rope/2 sines
  bool interleave =
      true;  // rotates pairs (2i, 2i+1); else (i, i + rope/2). Values stay where the pair was.
  float* q_latent = nullptr;  // [T, H, R + rope], dense
  int64_t num_tokens = 0;
};
cudaError_t absorb(const Absorb& problem, const Launch& launch);

// o_latent[t, h] = sum over the keys up to t's position of softmax(q_latent . key * softmax_scale)
// * c. Any query lengths, causal. Online softmax over 16 keys at a time in chunks of 256 from
// position 0. Tokens of a padding sequence (context_len 0) give zeros; tokens of no sequence are
// not written.
struct Attend {
  AttentionDims dims;               // latent <= 1024; nope and v are not read
  const float* q_latent = nullptr;  // [T, H, R + rope], dense
  LatentCache cache;                // width >= R + rope; of an e4m3 cache: R + rope
  StepSequences sequences;
  float softmax_scale = 1;
  float* o_latent = nullptr;  // [T, H, R], dense
  int64_t num_tokens = 0;     // T, over all sequences
  // With a workspace the chunks of one query run on several SMs and a second kernel merges them,
  // bit for bit as one CTA would. For decode steps; null for none.
  float* workspace = nullptr;   // attend_workspace_bytes(dims, num_tokens, max_context_len)
  int64_t max_context_len = 0;  // largest context_len; read only with a workspace
};
cudaError_t attend(const Attend& problem, const Launch& launch);
size_t attend_workspace_bytes(const AttentionDims& dims,
                              int64_t num_tokens,
                              int64_t max_context_len);

// out[t, h * v + i] = o_latent[t, h] . W_uv[h, i].
struct Expand {
  AttentionDims dims;
  ops::Matrix kv_b;
  const float* o_latent = nullptr;  // [T, H, R], dense
  __nv_bfloat16* out = nullptr;     // [T, H * v]
  int64_t out_stride = 0;
  int64_t num_tokens = 0;
};
cudaError_t expand(const Expand& problem, const Launch& launch);

}  // namespace r1d::kernels::generic
