// SPDX-License-Identifier: Apache-2.0
// Experts for few tokens: bound by reading the chosen experts once.
#include "kernels/moe_decode/moe_decode.h"

#include <algorithm>

#include "r1d/base/status.h"

#include "kernels/router/router.h"
#include "ops/cuda/feed_forward.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

constexpr int32_t kTokens = std::min(kernels::kMoeDecodeTokens, kernels::kRouteDecodeTokens);

}  // namespace

void FeedForward::layout_decode(Arena& arena) {
  const RouterOptions& router = dims_.router;
  const auto tokens = static_cast<int32_t>(std::min<int64_t>(max_tokens_, kTokens));
  route_workspace_ = arena.take<std::byte>(static_cast<int64_t>(
      kernels::route_decode_workspace(tokens, dims_.hidden_size, router.num_experts)));
  decode_workspace_ = arena.take<std::byte>(static_cast<int64_t>(kernels::moe_decode_workspace(
      {.num_tokens = tokens,
       .top_k = router.top_k,
       .num_local = router.num_experts,
       .hidden = (dims_.hidden_size + 127) / 128 * 128,
       .intermediate = (dims_.max_intermediate + 127) / 128 * 128,
       .shared_intermediate = (dims_.max_intermediate + 127) / 128 * 128})));
  num_blocks_ = arena.take<int32_t>(1);
  blocks_ = arena.take<std::byte>(static_cast<int64_t>(sizeof(kernels::ExpertBlock)) *
                                  (router.num_experts + int64_t{tokens} * router.top_k));
  entries_ = arena.take<int32_t>(int64_t{tokens} * router.top_k);
}

absl::Status FeedForward::moe_decode(const PreparedMoe& weights,
                                     const Rows& x,
                                     int64_t tokens,
                                     const Output& out) {
  const RouterOptions& router = dims_.router;
  const auto count = static_cast<int32_t>(tokens);
  const auto num_local = static_cast<int32_t>(weights.experts.size());
  const kernels::ExpertLists lists{.num_blocks = num_blocks_,
                                   .blocks = reinterpret_cast<kernels::ExpertBlock*>(blocks_),
                                   .entries = entries_};
  // Ahead of the router: the experts read it while the router runs.
  R1D_ASSIGN_OR_RETURN(const kernels::QuantizedRows rows,
                       linear_.quantized(Kind::kExperts, x, tokens, dims_.hidden_size));
  const int64_t router_bytes =
      weights.router.rows * weights.router.cols * dtype_bytes(weights.router.dtype);
  const Cost routing{.bytes = static_cast<double>(router_bytes + tokens * dims_.hidden_size * 2),
                     .flops = 2.0 * static_cast<double>(tokens * router.num_experts) *
                              static_cast<double>(dims_.hidden_size)};
  const kernels::Routing chosen{.experts = experts_, .weights = weights_};
  const kernels::ListOptions options{.first_expert = weights.first_expert,
                                     .num_local = num_local,
                                     .live_tokens = step_.live_tokens()};
  R1D_RETURN_IF_ERROR(launches_(Kind::kRouter, routing, [&](const Launch& launch) {
    return kernels::route_decode(weights.router.data,
                                 weights.router.dtype == DType::kF32
                                     ? kernels::RouterWeightType::kF32
                                     : kernels::RouterWeightType::kBf16,
                                 weights.router_bias,
                                 x.data,
                                 count,
                                 dims_.hidden_size,
                                 {.num_experts = router.num_experts,
                                  .top_k = router.top_k,
                                  .num_groups = router.num_groups,
                                  .kept_groups = router.kept_groups,
                                  .normalize = router.normalize,
                                  .scaling_factor = router.scaling_factor},
                                 options,
                                 chosen,
                                 lists,
                                 route_workspace_,
                                 launch);
  }));
  const PreparedMlp& first = weights.experts.front();
  const kernels::RoutedExperts routed{.gate_up_tiles = first.gate_up.tiles,
                                      .gate_up_stride = weights.tiles_stride,
                                      .gate_scale = first.gate_up.gate_scale,
                                      .up_scale = first.gate_up.up_scale,
                                      .gate_up_scale_stride = weights.scale_stride,
                                      .down_tiles = first.down.tiled.tiles,
                                      .down_stride = weights.tiles_stride,
                                      .down_scale = first.down.tiled.scale,
                                      .down_scale_stride = weights.scale_stride,
                                      .intermediate = first.intermediate(),
                                      .num_local = num_local};
  kernels::SharedExpert shared;
  Cost cost{.bytes = expected_expert_bytes(weights, tokens) +
                     3.0 * static_cast<double>(tokens * dims_.hidden_size),
            .flops = expert_flops(weights, tokens)};
  if (weights.has_shared) {
    shared = {.gate_up = weights.shared.gate_up, .down = weights.shared.down.tiled};
    cost.bytes += static_cast<double>(weights.shared.bytes());
    cost.flops += 2.0 * static_cast<double>(tokens) * static_cast<double>(weights.shared.bytes());
  }
  return launches_(Kind::kExperts, cost, [&](const Launch& launch) {
    return kernels::moe_decode(rows,
                               count,
                               chosen,
                               router.top_k,
                               options,
                               lists,
                               routed,
                               shared,
                               static_cast<__nv_bfloat16*>(out.data),
                               decode_workspace_,
                               launch);
  });
}

}  // namespace r1d::ops::cuda
