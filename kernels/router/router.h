// SPDX-License-Identifier: Apache-2.0
// The MoE router: logits, the choice of experts per token, and the lists by which grouped kernels
// walk the experts in use. Rules and tie-breaks are those of src/ops/cpu/router.cc.
//
// score = sigmoid(x . W^T) in f32. choice = score + bias; a NaN choice counts as -1e30 (such a
// token is lost but must route somewhere). Where kept_groups < num_groups the groups with the
// largest sums of their two best choices stay. The top_k best choices win, the lowest index among
// equals. weight = score (without bias), divided by (sum + 1e-20) when normalize, times
// scaling_factor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>

#include "kernels/common/launch.h"

namespace r1d::kernels {

struct RouterRules {
  int32_t num_experts = 0;  // E <= 512, a multiple of num_groups
  int32_t top_k = 0;        // <= 32 and <= kept_groups * E / num_groups
  int32_t num_groups = 1;   // <= 32
  int32_t kept_groups = 1;
  bool normalize = true;
  float scaling_factor = 1;
};

// Per token, in the order of choice.
struct Routing {
  int32_t* experts = nullptr;  // [T, k], 0 .. E - 1
  float* weights = nullptr;    // [T, k]
};

// Up to token_block_size(T) tokens of one local expert: what a grouped kernel multiplies by one
// weight tile.
struct alignas(16) ExpertBlock {
  int32_t expert;  // local: 0 .. num_local - 1
  int32_t begin;   // its first entry
  int32_t count;   // entries, at least 1
  int32_t group;   // groups of 8 entries (begun ones count) of all blocks before it
};

// The experts in use. Blocks ascend by expert, entries inside an expert by value: nothing depends
// on timing. An expert has ceil(entries / token_block_size) blocks, all full but the last. An
// expert without tokens has none.
struct ExpertLists {
  int32_t* num_blocks = nullptr;  // [1]
  ExpertBlock* blocks = nullptr;  // [max_expert_blocks()]
  int32_t* entries = nullptr;     // [T * k]; an entry is token * k + slot
};

// T = tokens of the launch (host-known), not the live ones.
constexpr int32_t token_block_size(int32_t num_tokens) {
  return num_tokens <= 8 ? 8 : 32;
}
constexpr int32_t max_expert_blocks(int32_t num_tokens, int32_t top_k, int32_t num_local) {
  return std::min(num_tokens * top_k,
                  num_local + num_tokens * top_k / token_block_size(num_tokens));
}
// Upper bound of all blocks' groups of 8.
constexpr int32_t max_expert_groups(int32_t num_tokens, int32_t top_k, int32_t num_local) {
  return std::min(num_tokens * top_k, num_local + num_tokens * top_k / 8);
}

// Whether route_decode() makes lists for so many tokens. For a few more than 8 the trip through L2
// that they take costs more than it costs each block of moe_decode() to make them for itself: to 32
// tokens an expert has one block, and its tokens fit the bits of a word.
constexpr bool makes_lists(int32_t num_tokens) {
  return num_tokens <= 8 || num_tokens > 32;
}

enum class RouterWeightType { kBf16, kF32 };

// Which experts this rank lists: [first_expert, first_expert + num_local).
struct ListOptions {
  int32_t first_expert = 0;
  int32_t num_local = 0;  // 1 .. 512
  const int32_t* live_tokens =
      nullptr;  // device; tokens from *live_tokens on join no list. null: all live
};

inline constexpr int32_t kRouteDecodeTokens = 256;

// Bytes of route_decode's workspace for up to `num_tokens`; 16-byte aligned. All of it is zeroed
// once by the caller before the first use; every call leaves it zeroed for the next. Calls that
// share it must not overlap.
size_t route_decode_workspace(int32_t num_tokens, int64_t hidden, int32_t num_experts);

// Router GEMM, choice and, where makes_lists(), lists for 1 .. kRouteDecodeTokens tokens: one
// launch, or two where its blocks would not all fit on the GPU at once (many experts, f32 weights).
// f32 accumulation, products exact, a fixed order of sums: a token's result does not depend on the
// others.
// NOTE: the one launch's blocks wait for each other. What runs beside it must end by itself.
// NOTE: it lets the kernel behind it start after its own dependency wait, not before: the experts
// read what the router waited for ahead of their own wait.
//   weight   [E, D] bf16 or f32, 16-byte aligned; D = hidden, a multiple of 8
//   bias     [E] f32, may be null
//   x        [T, D] bf16, normed, 16-byte aligned
// cudaErrorInvalidValue: sizes outside the above.
cudaError_t route_decode(const void* weight,
                         RouterWeightType weight_type,
                         const float* bias,
                         const __nv_bfloat16* x,
                         int32_t num_tokens,
                         int64_t hidden,
                         const RouterRules& rules,
                         const ListOptions& options,
                         const Routing& routing,
                         const ExpertLists& lists,
                         void* workspace,
                         const Launch& launch);

// The logits alone, for many tokens: logits [T, E] f32 = x W^T, row stride `logits_stride` >= E, a
// multiple of 2, 8-byte aligned. One kernel of a block per 128 tokens and 128 experts, each
// of which walks over all of D: made for chunks that fill the GPU. weight [E, D] and x [T, D] bf16,
// 16-byte aligned, x's row stride a multiple of 8.
bool route_logits_serves(int64_t hidden, int32_t num_experts);
cudaError_t route_logits(const __nv_bfloat16* weight,
                         const __nv_bfloat16* x,
                         int64_t x_stride,
                         int32_t num_tokens,
                         int64_t hidden,
                         int32_t num_experts,
                         float* logits,
                         int64_t logits_stride,
                         const Launch& launch);

// The choice alone for any number of tokens. logits [T, E] f32, row stride `logits_stride` >= E.
cudaError_t route_from_logits(const float* logits,
                              int64_t logits_stride,
                              const float* bias,
                              int32_t num_tokens,
                              const RouterRules& rules,
                              const Routing& routing,
                              const Launch& launch);

// The lists alone, from [T, k] experts of 1 .. kRouteDecodeTokens tokens.
cudaError_t list_experts(const int32_t* experts,
                         int32_t num_tokens,
                         int32_t top_k,
                         const ListOptions& options,
                         const ExpertLists& lists,
                         const Launch& launch);

}  // namespace r1d::kernels
