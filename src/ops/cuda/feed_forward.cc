// SPDX-License-Identifier: Apache-2.0
// Dense MLPs, the choice of form, and the generic experts; moe_decode.cc and moe_prefill.cc hold
// the forms made for sm_90a.
#include "ops/cuda/feed_forward.h"

#include <algorithm>
#include <cmath>

#include "r1d/base/status.h"

#include "kernels/fp8_gemm/fp8_gemm.h"
#include "kernels/fp8_gemm_prefill/fp8_gemm_prefill.h"
#include "kernels/generic/generic.h"
#include "kernels/router/router.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

// From here on the router's own product keeps the GPU busy; below, a library that splits sums is
// ahead (kernels/router).
constexpr int64_t kFewestLogitTokens = 6144;

kernels::RouterRules rules_of(const RouterOptions& options) {
  return {.num_experts = options.num_experts,
          .top_k = options.top_k,
          .num_groups = options.num_groups,
          .kept_groups = options.kept_groups,
          .normalize = options.normalize,
          .scaling_factor = options.scaling_factor};
}

}  // namespace

FeedForward::FeedForward(const ModelDims& dims,
                         const CudaOptions& options,
                         int capability,
                         int32_t num_sms,
                         const DeviceStep& step,
                         LinearKernels& linear,
                         Launches& launches)
    : dims_(dims),
      options_(options),
      sm90_(capability == 90),
      num_sms_(num_sms),
      step_(step),
      linear_(linear),
      launches_(launches),
      max_tokens_(std::max<int64_t>(options.max_tokens, 256)),
      chunk_(std::min<int64_t>(max_tokens_, kExpertTokens)) {}

void FeedForward::layout(Arena& arena) {
  const int64_t width = dims_.max_intermediate;
  gate_ = arena.take<__nv_bfloat16>(max_tokens_ * width);
  up_ = arena.take<__nv_bfloat16>(max_tokens_ * width);
  h_ = arena.take_quantized(max_tokens_, (width + 127) / 128 * 128);
  if (dims_.router.num_experts == 0) return;
  router_logits_ = arena.take<float>(max_tokens_ * dims_.router.num_experts);
  experts_ = arena.take<int32_t>(max_tokens_ * dims_.router.top_k);
  weights_ = arena.take<float>(max_tokens_ * dims_.router.top_k);
  shared_ = arena.take<__nv_bfloat16>(chunk_ * dims_.hidden_size);
  expert_rows_ = arena.take<__nv_bfloat16>(chunk_ * dims_.router.top_k *
                                           std::max<int64_t>(dims_.hidden_size, 256));
  if (sm90_) {
    layout_decode(arena);
    layout_prefill(arena);
  }
  layout_generic(arena);
}

void FeedForward::layout_generic(Arena& arena) {
  const int64_t slots = chunk_ * dims_.router.top_k;
  generic_offset_ = arena.take<int32_t>(dims_.router.num_experts + 1);
  generic_slots_ = arena.take<int32_t>(slots);
  generic_gate_ = arena.take<__nv_bfloat16>(slots * dims_.max_intermediate);
  generic_up_ = arena.take<__nv_bfloat16>(slots * dims_.max_intermediate);
}

Rows FeedForward::slice(const Rows& x, int64_t first) {
  Rows rows = x;
  rows.data += first * x.stride;
  if (rows.quantized.data != nullptr) {
    rows.quantized.data += first * rows.quantized.cols;
    rows.quantized.scale += first;
  }
  return rows;
}

// h = silu(gate x) * (up x), in the form that the down product reads.
absl::Status FeedForward::gate_up(
    const PreparedMlp& weights, const Rows& x, int64_t tokens, Kind kind, Rows& h) {
  const int64_t width = weights.intermediate();
  h = {.data = gate_, .stride = width, .quantized = {}};
  if (!weights.is_tiled()) {
    R1D_RETURN_IF_ERROR(
        linear_.multiply(kind, weights.gate, x, tokens, {.data = gate_, .stride = width}));
    R1D_RETURN_IF_ERROR(
        linear_.multiply(kind, weights.up, x, tokens, {.data = up_, .stride = width}));
    return launches_(kind, {}, [&](const Launch& launch) {
      return kernels::generic::swiglu(
          gate_, width, up_, width, gate_, width, tokens, width, launch);
    });
  }
  const double values = static_cast<double>(tokens) * static_cast<double>(weights.gate_up.cols);
  const Cost cost{.bytes = static_cast<double>(2 * weights.gate.bytes()) + values,
                  .flops = 4 * values * static_cast<double>(width)};
  if (linear_.takes_decode_form(tokens)) {
    return launches_(kind, cost, [&](const Launch& launch) {
      if (x.quantized.data != nullptr) {
        return kernels::fp8_gate_up_decode(
            weights.gate_up, x.quantized, tokens, gate_, width, launch);
      }
      const kernels::Bf16Rows rows{.data = x.data, .stride = x.stride};
      return kernels::fp8_gate_up_decode(weights.gate_up, rows, tokens, gate_, width, launch);
    });
  }
  R1D_ASSIGN_OR_RETURN(const kernels::QuantizedRows rows,
                       linear_.quantized(kind, x, tokens, weights.gate_up.cols));
  h.quantized = h_;
  h.quantized.cols = width;
  return launches_(kind, cost, [&](const Launch& launch) {
    return kernels::fp8_gate_up_prefill(
        weights.gate_up, rows, static_cast<int32_t>(tokens), h.quantized, launch);
  });
}

absl::Status FeedForward::mlp_as(const PreparedMlp& weights,
                                 const Rows& x,
                                 int64_t tokens,
                                 Kind up,
                                 Kind down,
                                 const Output& out) {
  Rows h;
  R1D_RETURN_IF_ERROR(gate_up(weights, x, tokens, up, h));
  return linear_.multiply(down, weights.down, h, tokens, out);
}

absl::Status FeedForward::mlp(const PreparedMlp& weights,
                              const Rows& x,
                              int64_t tokens,
                              const Output& out) {
  return mlp_as(weights, x, tokens, Kind::kDenseGateUp, Kind::kDenseDown, out);
}

absl::Status FeedForward::moe(const PreparedMoe& weights,
                              const Rows& x,
                              int64_t tokens,
                              const Output& out) {
  constexpr int64_t kMostDecode = 256;
  if (weights.is_tiled && tokens <= kMostDecode && !options_.deterministic) {
    return moe_decode(weights, x, tokens, out);
  }
  R1D_RETURN_IF_ERROR(route(weights, x, tokens));
  return weights.is_tiled ? moe_prefill(weights, x, tokens, out)
                          : moe_generic(weights, x, tokens, out);
}

double FeedForward::expected_expert_bytes(const PreparedMoe& weights, int64_t tokens) const {
  if (weights.experts.empty()) return 0;
  const double share = static_cast<double>(dims_.router.top_k) / dims_.router.num_experts;
  const double active = 1 - std::pow(1 - share, static_cast<double>(tokens));
  return active * static_cast<double>(weights.experts.size()) *
         static_cast<double>(weights.experts.front().bytes());
}

double FeedForward::expert_flops(const PreparedMoe& weights, int64_t tokens) const {
  if (weights.experts.empty()) return 0;
  const PreparedMlp& expert = weights.experts.front();
  const double share = static_cast<double>(weights.experts.size()) / dims_.router.num_experts;
  return 6.0 * static_cast<double>(tokens) * dims_.router.top_k * share *
         static_cast<double>(expert.intermediate()) * static_cast<double>(dims_.hidden_size);
}

// f32 logits of all experts.
absl::Status FeedForward::route_logits(const PreparedMoe& weights, const Rows& x, int64_t tokens) {
  const int64_t num_experts = dims_.router.num_experts;
  const bool fills_gpu = sm90_ && weights.is_tiled && weights.router.dtype == DType::kBF16 &&
                         tokens >= kFewestLogitTokens && !options_.deterministic &&
                         kernels::route_logits_serves(dims_.hidden_size, dims_.router.num_experts);
  if (!fills_gpu) {
    const Linear router{.raw = weights.router, .tiled = {}};
    return linear_.multiply(Kind::kRouter,
                            router,
                            x,
                            tokens,
                            {.data = router_logits_, .stride = num_experts, .f32 = true});
  }
  const double values = static_cast<double>(tokens) * static_cast<double>(dims_.hidden_size);
  const Cost cost{.bytes = 2 * values + 2.0 * static_cast<double>(num_experts * dims_.hidden_size) +
                           4.0 * static_cast<double>(tokens * num_experts),
                  .flops = 2 * values * static_cast<double>(num_experts)};
  return launches_(Kind::kRouter, cost, [&](const Launch& launch) {
    return kernels::route_logits(static_cast<const __nv_bfloat16*>(weights.router.data),
                                 x.data,
                                 x.stride,
                                 static_cast<int32_t>(tokens),
                                 dims_.hidden_size,
                                 dims_.router.num_experts,
                                 router_logits_,
                                 num_experts,
                                 launch);
  });
}

// The choice for any number of tokens, from logits of a product with f32 sums.
absl::Status FeedForward::route(const PreparedMoe& weights, const Rows& x, int64_t tokens) {
  const int64_t num_experts = dims_.router.num_experts;
  R1D_RETURN_IF_ERROR(route_logits(weights, x, tokens));
  return launches_(Kind::kRouter, {}, [&](const Launch& launch) {
    return kernels::route_from_logits(router_logits_,
                                      num_experts,
                                      weights.router_bias,
                                      static_cast<int32_t>(tokens),
                                      rules_of(dims_.router),
                                      {.experts = experts_, .weights = weights_},
                                      launch);
  });
}

absl::Status FeedForward::moe_generic(const PreparedMoe& weights,
                                      const Rows& x,
                                      int64_t tokens,
                                      const Output& out) {
  using namespace kernels::generic;
  const int32_t k = dims_.router.top_k;
  const auto num_local = static_cast<int32_t>(weights.experts.size());
  const ExpertLists lists{.offset = generic_offset_, .slots = generic_slots_};
  for (int64_t first = 0; first < tokens; first += chunk_) {
    const int64_t count = std::min(chunk_, tokens - first);
    const Rows rows = slice(x, first);
    auto* to = static_cast<__nv_bfloat16*>(out.data) + first * out.stride;
    const int32_t* chosen = experts_ + first * k;
    R1D_RETURN_IF_ERROR(launches_(Kind::kExperts, {}, [&](const Launch& launch) {
      return build_lists(chosen, count * k, weights.first_expert, num_local, lists, launch);
    }));
    if (num_local > 0) {
      const Linear& gate = weights.experts.front().gate;
      GroupedGemm product{.weights = weights.gates(),
                          .dtype = gate.raw.dtype,
                          .rows = gate.rows(),
                          .cols = gate.cols(),
                          .num_experts = num_local,
                          .lists = lists,
                          .x = rows.data,
                          .x_stride = rows.stride,
                          .slots_per_x_row = k,
                          .out = generic_gate_,
                          .out_stride = gate.rows(),
                          .num_slots = count * k,
                          .max_count = count};
      R1D_RETURN_IF_ERROR(launches_(
          Kind::kExperts, {}, [&](const Launch& launch) { return grouped_gemm(product, launch); }));
      product.weights = weights.ups();
      product.dtype = weights.experts.front().up.raw.dtype;
      product.out = generic_up_;
      R1D_RETURN_IF_ERROR(launches_(
          Kind::kExperts, {}, [&](const Launch& launch) { return grouped_gemm(product, launch); }));
      const int64_t width = gate.rows();
      R1D_RETURN_IF_ERROR(launches_(Kind::kExperts, {}, [&](const Launch& launch) {
        return swiglu(generic_gate_,
                      width,
                      generic_up_,
                      width,
                      generic_gate_,
                      width,
                      count * k,
                      width,
                      launch);
      }));
      const Linear& down = weights.experts.front().down;
      product.weights = weights.downs();
      product.dtype = down.raw.dtype;
      product.rows = down.rows();
      product.cols = down.cols();
      product.x = generic_gate_;
      product.x_stride = width;
      product.slots_per_x_row = 1;
      product.out = expert_rows_;
      product.out_stride = down.rows();
      R1D_RETURN_IF_ERROR(launches_(
          Kind::kExperts, {}, [&](const Launch& launch) { return grouped_gemm(product, launch); }));
    }
    if (weights.has_shared) {
      R1D_RETURN_IF_ERROR(mlp_as(weights.shared,
                                 rows,
                                 count,
                                 Kind::kShared,
                                 Kind::kShared,
                                 {.data = shared_, .stride = dims_.hidden_size}));
    }
    R1D_RETURN_IF_ERROR(launches_(Kind::kCombine, {}, [&](const Launch& launch) {
      return combine_slots({.rows = expert_rows_,
                            .weights = weights_ + first * k,
                            .experts = chosen,
                            .first_expert = weights.first_expert,
                            .num_experts = num_local,
                            .shared = weights.has_shared ? shared_ : nullptr,
                            .out = to,
                            .out_stride = out.stride,
                            .num_tokens = count,
                            .k = k,
                            .cols = dims_.hidden_size},
                           launch);
    }));
  }
  return absl::OkStatus();
}

}  // namespace r1d::ops::cuda
