// SPDX-License-Identifier: Apache-2.0
// Experts for many tokens: sorted by expert, two grouped products, one weighted sum.
#include "kernels/moe_prefill/moe_prefill.h"

#include <algorithm>

#include "r1d/base/status.h"

#include "ops/cuda/feed_forward.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

// Where keeping the experts' rows in L2 begins to pay (kernels/moe_prefill).
constexpr int32_t kFewestSlabTokens = 6144;

}  // namespace

void FeedForward::layout_prefill(Arena& arena) {
  const RouterOptions& router = dims_.router;
  const int64_t pairs = chunk_ * router.top_k;
  lists_[0] = arena.take<int32_t>(pairs);
  lists_[1] = arena.take<int32_t>(pairs);
  lists_[2] =
      arena.take<int32_t>(4 * kernels::moe_max_tiles(chunk_, router.top_k, router.num_experts));
  lists_[3] = arena.take<int32_t>(
      4 * kernels::moe_max_wide_tiles(chunk_, router.top_k, router.num_experts));
  lists_[4] = arena.take<int32_t>(3);
  lists_[5] = arena.take<int32_t>(kernels::kMoeProgress);
  expert_h_ = arena.take_quantized(pairs, (dims_.max_intermediate + 127) / 128 * 128);
}

absl::Status FeedForward::moe_prefill(const PreparedMoe& weights,
                                      const Rows& x,
                                      int64_t tokens,
                                      const Output& out) {
  const int32_t k = dims_.router.top_k;
  const PreparedMlp& expert = weights.experts.front();
  const kernels::PairLists lists{.row_pair = lists_[0],
                                 .pair_row = lists_[1],
                                 .tiles = lists_[2],
                                 .wide_tiles = lists_[3],
                                 .totals = lists_[4],
                                 .progress = lists_[5]};
  const kernels::ExpertGateUp gate_up{.first = expert.gate_up,
                                      .tiles_stride = weights.tiles_stride,
                                      .scale_stride = weights.scale_stride};
  const kernels::ExpertDown down{.first = expert.down.tiled,
                                 .tiles_stride = weights.tiles_stride,
                                 .scale_stride = weights.scale_stride};
  const auto num_local = static_cast<int32_t>(weights.experts.size());
  kernels::QuantizedRows h = expert_h_;
  h.cols = expert.intermediate();
  R1D_ASSIGN_OR_RETURN(const kernels::QuantizedRows all,
                       linear_.quantized(Kind::kExperts, x, tokens, dims_.hidden_size));
  const Rows quantized{.data = x.data, .stride = x.stride, .quantized = all};
  for (int64_t first = 0; first < tokens; first += chunk_) {
    const auto count = static_cast<int32_t>(std::min(chunk_, tokens - first));
    const Rows rows = slice(quantized, first);
    auto* to = static_cast<__nv_bfloat16*>(out.data) + first * out.stride;
    R1D_RETURN_IF_ERROR(launches_(Kind::kExperts, {}, [&](const Launch& launch) {
      return kernels::moe_expert_lists(
          experts_ + first * k, count, k, weights.first_expert, num_local, lists, launch);
    }));
    const double pairs = static_cast<double>(count) * k;
    const Cost up_cost{.bytes = expected_expert_bytes(weights, count) * 2 / 3 +
                                static_cast<double>(count * dims_.hidden_size) +
                                pairs * static_cast<double>(h.cols),
                       .flops = expert_flops(weights, count) * 2 / 3};
    R1D_RETURN_IF_ERROR(launches_(Kind::kExperts, up_cost, [&](const Launch& launch) {
      return kernels::moe_gate_up(gate_up, rows.quantized, count, k, lists, h, launch);
    }));
    if (weights.has_shared) {
      R1D_RETURN_IF_ERROR(mlp_as(weights.shared,
                                 rows,
                                 count,
                                 Kind::kShared,
                                 Kind::kShared,
                                 {.data = shared_, .stride = dims_.hidden_size}));
    }
    const Cost down_cost{.bytes = expected_expert_bytes(weights, count) / 3 +
                                  pairs * static_cast<double>(h.cols) +
                                  4.0 * static_cast<double>(count * dims_.hidden_size),
                         .flops = expert_flops(weights, count) / 3};
    const __nv_bfloat16* shared = weights.has_shared ? shared_ : nullptr;
    R1D_RETURN_IF_ERROR(launches_(Kind::kExperts, down_cost, [&](const Launch& launch) {
      const bool in_slabs =
          !options_.shares_gpu && count >= kFewestSlabTokens &&
          kernels::moe_down_slabs_serves(count, k, num_local, dims_.hidden_size, h.cols, num_sms_);
      if (in_slabs) {
        return kernels::moe_down_slabs(down,
                                       h,
                                       lists,
                                       num_local,
                                       weights_ + first * k,
                                       shared,
                                       count,
                                       k,
                                       num_sms_,
                                       expert_rows_,
                                       to,
                                       launch);
      }
      return kernels::moe_down_combine(down,
                                       h,
                                       lists,
                                       weights_ + first * k,
                                       shared,
                                       count,
                                       k,
                                       expert_rows_,
                                       kernels::moe_down_block(count, k, dims_.hidden_size),
                                       to,
                                       launch);
    }));
  }
  return absl::OkStatus();
}

}  // namespace r1d::ops::cuda
