// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/attention.h"

#include <algorithm>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "kernels/generic/generic.h"
#include "kernels/mla_prefill/mla_prefill.h"

namespace r1d::ops::cuda {
namespace {

using kernels::Launch;

kernels::LatentCache cache_of(const LatentPages& pages) {
  return {.data = pages.data,
          .block_size = pages.block_size,
          .width = static_cast<int32_t>(pages.width),
          .dtype = pages.dtype};
}

int64_t token_bytes(const LatentPages& pages, const ModelDims& dims) {
  const LatentFormat format{
      .dtype = pages.dtype, .latent = dims.kv_lora_rank, .rope = dims.qk_rope_head_dim};
  return format.bytes_per_token();
}

double bytes(int64_t count, int64_t width) {
  return static_cast<double>(count) * static_cast<double>(width);
}

}  // namespace

Attention::Attention(const ModelDims& dims,
                     const CudaOptions& options,
                     int num_multiprocessors,
                     bool has_r1_kernels,
                     const DeviceStep& step,
                     LinearKernels& linear,
                     Launches& launches)
    : dims_(dims),
      options_(options),
      num_sms_(num_multiprocessors),
      r1_(has_r1_kernels),
      step_(step),
      linear_(linear),
      launches_(launches),
      heads_(dims.num_heads),
      query_dim_(dims.qk_nope_head_dim + dims.qk_rope_head_dim),
      row_dim_(dims.kv_lora_rank + dims.qk_rope_head_dim),
      joint_dim_(dims.q_lora_rank + row_dim_) {}

kernels::MlaShape Attention::shape() const {
  return {.heads = dims_.num_heads,
          .num_tokens = static_cast<int32_t>(step_.num_decode_tokens()),
          .num_sequences = step_.decode().num_sequences,
          .max_query_len = step_.max_decode_query(),
          .num_sms = num_sms_,
          .deterministic = options_.deterministic};
}

kernels::MlaShape Attention::largest_shape() const {
  const int32_t sequences = std::max(options_.max_sequences, DeviceStep::kMaxGraphTokens);
  return {.heads = dims_.num_heads,
          .num_tokens = std::min(std::max(options_.max_tokens, DeviceStep::kMaxGraphTokens),
                                 sequences * DeviceStep::kMaxDecodeQuery),
          .num_sequences = sequences,
          .max_query_len = DeviceStep::kMaxDecodeQuery,
          .num_sms = num_sms_,
          .deterministic = options_.deterministic};
}

void Attention::layout(Arena& arena) {
  const int64_t tokens = std::max(options_.max_tokens, DeviceStep::kMaxGraphTokens);
  joint_ = arena.take<__nv_bfloat16>(tokens * joint_dim_);
  q_low_ = arena.take<__nv_bfloat16>(tokens * dims_.q_lora_rank);
  if (dims_.q_lora_rank % 128 == 0)
    q_low_quantized_ = arena.take_quantized(tokens, dims_.q_lora_rank);
  q_ = arena.take<__nv_bfloat16>(tokens * heads_ * query_dim_);
  heads_out_ = arena.take<__nv_bfloat16>(tokens * heads_ * dims_.v_head_dim);
  if (!r1_) {
    generic_q_ = arena.take<float>(tokens * heads_ * row_dim_);
    generic_o_ = arena.take<float>(tokens * heads_ * dims_.kv_lora_rank);
    layout_generic_workspace(arena);
    return;
  }
  const kernels::MlaShape largest = largest_shape();
  q_latent_ = arena.take<__nv_bfloat16>(largest.num_tokens * heads_ * row_dim_);
  plan_ = arena.take<std::byte>(static_cast<int64_t>(kernels::mla_plan_bytes(largest)));
  decode_workspace_ =
      arena.take<std::byte>(static_cast<int64_t>(kernels::mla_workspace_bytes(largest)));
  const int64_t keys = step_.key_capacity();
  latents_ = arena.take<__nv_bfloat16>(keys * dims_.kv_lora_rank);
  latents_quantized_ = arena.take_quantized(keys, dims_.kv_lora_rank);
  k_pe_ = arena.take<__nv_bfloat16>(keys * dims_.qk_rope_head_dim);
  kv_ = arena.take<__nv_bfloat16>(keys * heads_ * (dims_.qk_nope_head_dim + dims_.v_head_dim));
  if (step_.may_need_windows()) {
    running_out_ = arena.take<float>(tokens * heads_ * dims_.v_head_dim);
    running_lse_ = arena.take<float>(tokens * heads_);
  }
  tile_counter_ = arena.take<uint32_t>(1);
}

// Memory for splitting the keys of a decode batch, as large a batch as a bounded workspace allows.
void Attention::layout_generic_workspace(Arena& arena) {
  constexpr size_t kMostBytes = size_t{512} << 20;
  const auto bytes = [this](int64_t tokens) {
    return kernels::generic::attend_workspace_bytes(
        generic_sizes(), tokens, options_.max_model_len);
  };
  generic_split_tokens_ = DeviceStep::kMaxGraphTokens;
  while (generic_split_tokens_ > 0 && bytes(generic_split_tokens_) > kMostBytes) {
    generic_split_tokens_ /= 2;
  }
  const size_t count = generic_split_tokens_ > 0 ? bytes(generic_split_tokens_) / sizeof(float) : 0;
  generic_workspace_ = arena.take<float>(static_cast<int64_t>(count) + 1);
}

kernels::generic::AttentionDims Attention::generic_sizes() const {
  return {.heads = dims_.num_heads,
          .latent = static_cast<int32_t>(dims_.kv_lora_rank),
          .nope = static_cast<int32_t>(dims_.qk_nope_head_dim),
          .rope = static_cast<int32_t>(dims_.qk_rope_head_dim),
          .v = static_cast<int32_t>(dims_.v_head_dim)};
}

absl::Status Attention::begin_step() {
  if (!r1_ || step_.num_decode_tokens() == 0) return absl::OkStatus();
  return launches_(Kind::kBegin, {}, [&](const Launch& launch) {
    return kernels::mla_plan(step_.decode(), shape(), plan_, launch);
  });
}

absl::Status Attention::run(const PreparedAttention& weights,
                            const LatentPages& pages,
                            const Rows& x,
                            const Output& out) {
  R1D_CHECK(pages.width == row_dim_);
  R1D_RETURN_IF_ERROR(project(weights, pages, x));
  // The heads' values leave as codes where o takes codes.
  const bool as_codes = r1_ && weights.o.is_tiled();
  const int64_t width = heads_ * dims_.v_head_dim;
  const Rows attended{.data = heads_out_,
                      .stride = width,
                      .quantized = as_codes ? linear_.scratch(width) : kernels::QuantizedRows{}};
  if (!r1_) {
    R1D_RETURN_IF_ERROR(generic(weights, pages));
  } else {
    R1D_RETURN_IF_ERROR(decode(weights, pages, attended.quantized));
    R1D_RETURN_IF_ERROR(prefill(weights, pages, attended.quantized));
  }
  return linear_.multiply(Kind::kO, weights.o, attended, step_.num_tokens(), out);
}

// Queries, and the step's latents in their pages.
absl::Status Attention::project(const PreparedAttention& weights,
                                const LatentPages& pages,
                                const Rows& x) {
  const int64_t tokens = step_.num_tokens();
  const int64_t q_lora = dims_.q_lora_rank;
  if (weights.qkv_a.rows() > 0) {
    R1D_RETURN_IF_ERROR(linear_.multiply(
        Kind::kQkvA, weights.qkv_a, x, tokens, {.data = joint_, .stride = joint_dim_}));
  } else {
    if (q_lora > 0) {
      R1D_RETURN_IF_ERROR(linear_.multiply(
          Kind::kQkvA, weights.q_a, x, tokens, {.data = joint_, .stride = joint_dim_}));
    }
    R1D_RETURN_IF_ERROR(linear_.multiply(
        Kind::kQkvA, weights.kv_a, x, tokens, {.data = joint_ + q_lora, .stride = joint_dim_}));
  }
  const bool quantizes = weights.q_b.is_tiled() && q_lora > 0;
  Rows q_low{.data = q_low_,
             .stride = q_lora,
             .quantized = quantizes ? q_low_quantized_ : kernels::QuantizedRows{}};
  const Cost cost{.bytes = bytes(tokens * joint_dim_, 2) +
                           bytes(tokens, token_bytes(pages, dims_)) +
                           bytes(tokens * q_lora, quantizes ? 1 : 2)};
  R1D_RETURN_IF_ERROR(launches_(Kind::kSplitNorm, cost, [&](const Launch& launch) {
    return kernels::mla_split_norm({.x = joint_,
                                    .x_stride = joint_dim_,
                                    .tokens = tokens,
                                    .q_lora = q_lora,
                                    .latent = dims_.kv_lora_rank,
                                    .rope = dims_.qk_rope_head_dim,
                                    .q_weight = weights.q_a_norm,
                                    .kv_weight = weights.kv_a_norm,
                                    .eps = dims_.rms_norm_eps,
                                    .cos_sin = step_.cos_sin(),
                                    .interleave = dims_.rope_interleave,
                                    .q = {.bf16 = quantizes ? nullptr : q_low_,
                                          .stride = q_lora,
                                          .quantized = q_low.quantized},
                                    .cache = cache_of(pages),
                                    .slots = step_.slots()},
                                   launch);
  }));
  return linear_.multiply(Kind::kQB,
                          weights.q_b,
                          q_lora > 0 ? q_low : x,
                          tokens,
                          {.data = q_, .stride = heads_ * query_dim_});
}

absl::Status Attention::decode(const PreparedAttention& weights,
                               const LatentPages& pages,
                               const kernels::QuantizedRows& codes) {
  const int64_t tokens = step_.num_decode_tokens();
  if (tokens == 0) return absl::OkStatus();
  const kernels::MlaRope rope{.table = step_.cos_sin(), .interleave = dims_.rope_interleave};
  const int64_t matrix = heads_ * dims_.qk_nope_head_dim * dims_.kv_lora_rank;
  const double product = 2.0 * static_cast<double>(tokens) * static_cast<double>(matrix);
  R1D_RETURN_IF_ERROR(
      launches_(Kind::kAbsorb,
                {.bytes = bytes(matrix, 2) + bytes(tokens * heads_ * (query_dim_ + row_dim_), 2),
                 .flops = product},
                [&](const Launch& launch) {
                  return kernels::mla_absorb_queries(
                      q_, weights.absorbed, rope, dims_.softmax_scale, shape(), q_latent_, launch);
                }));
  const int64_t context = step_.decode_context();
  R1D_RETURN_IF_ERROR(launches_(
      Kind::kDecode,
      {.bytes = bytes(context, token_bytes(pages, dims_)) + bytes(tokens * heads_ * row_dim_, 2),
       .flops = 2.0 * static_cast<double>(context * heads_) *
                static_cast<double>(row_dim_ + dims_.kv_lora_rank)},
      [&](const Launch& launch) {
        return kernels::mla_decode(q_latent_,
                                   cache_of(pages),
                                   pages.num_blocks,
                                   step_.decode(),
                                   shape(),
                                   plan_,
                                   decode_workspace_,
                                   launch);
      }));
  const kernels::MlaOutput to{.bf16 = codes.data == nullptr ? heads_out_ : nullptr,
                              .quantized = codes};
  return launches_(Kind::kExpand,
                   {.bytes = bytes(matrix, 2) +
                             bytes(tokens * heads_ * (dims_.kv_lora_rank + dims_.v_head_dim), 2),
                    .flops = product},
                   [&](const Launch& launch) {
                     return kernels::mla_expand_values(
                         decode_workspace_, weights.absorbed, shape(), plan_, to, launch);
                   });
}

absl::Status Attention::prefill(const PreparedAttention& weights,
                                const LatentPages& pages,
                                const kernels::QuantizedRows& codes) {
  const int64_t tokens = step_.num_prefill_tokens();
  if (tokens == 0) return absl::OkStatus();
  const int64_t first = step_.num_decode_tokens();
  R1D_RETURN_IF_ERROR(launches_(Kind::kPrefill, {}, [&](const Launch& launch) {
    return kernels::rotate_queries(q_ + first * heads_ * query_dim_,
                                   step_.cos_sin() + first * dims_.qk_rope_head_dim,
                                   tokens,
                                   heads_,
                                   dims_.rope_interleave,
                                   launch);
  }));
  for (size_t window = 0; window < step_.windows().size(); ++window) {
    R1D_RETURN_IF_ERROR(prefill_window(weights, pages, window, codes));
  }
  return absl::OkStatus();
}

// The latents of a window's keys, then keys and values from them.
absl::Status Attention::gather(const PreparedAttention& weights,
                               const LatentPages& pages,
                               const KeyWindow& window) {
  const kernels::GatherLatents gathered{.cache = cache_of(pages),
                                        .block_ids = step_.all().block_ids,
                                        .sequences = window.sequences,
                                        .num_sequences = step_.num_prefill(),
                                        .num_keys = window.num_keys,
                                        .k_pe = k_pe_};
  const bool quantizes = weights.kv_b.is_tiled();
  const Cost cost{.bytes = bytes(window.num_keys, token_bytes(pages, dims_)) +
                           bytes(window.num_keys * row_dim_, quantizes ? 1 : 2)};
  R1D_RETURN_IF_ERROR(launches_(Kind::kGather, cost, [&](const Launch& launch) {
    return quantizes ? kernels::gather_latents(gathered, latents_quantized_, launch)
                     : kernels::gather_latents(gathered, latents_, launch);
  }));
  const Rows latents{.data = latents_,
                     .stride = dims_.kv_lora_rank,
                     .quantized = quantizes ? latents_quantized_ : kernels::QuantizedRows{}};
  return linear_.multiply(
      Kind::kKvB,
      weights.kv_b,
      latents,
      window.num_keys,
      {.data = kv_, .stride = heads_ * (dims_.qk_nope_head_dim + dims_.v_head_dim)});
}

absl::Status Attention::prefill_window(const PreparedAttention& weights,
                                       const LatentPages& pages,
                                       size_t index,
                                       const kernels::QuantizedRows& codes) {
  const KeyWindow& window = step_.windows()[index];
  R1D_RETURN_IF_ERROR(gather(weights, pages, window));
  const size_t count = step_.windows().size();
  kernels::MlaPrefillState state;
  if (count > 1)
    state = {
        .out = running_out_, .lse = running_lse_, .first = index == 0, .last = index + 1 == count};
  const double pairs =
      step_.prefill_pairs() * static_cast<double>(heads_) / static_cast<double>(count);
  const Cost cost{
      .bytes = bytes(step_.num_prefill_tokens() * heads_ * (query_dim_ + dims_.v_head_dim), 2) +
               bytes(window.num_keys * heads_ * (dims_.qk_nope_head_dim + dims_.v_head_dim), 2),
      .flops = 2 * pairs * static_cast<double>(query_dim_ + dims_.v_head_dim)};
  return launches_(Kind::kPrefill, cost, [&](const Launch& launch) {
    return kernels::mla_prefill({.q = q_,
                                 .kv = kv_,
                                 .k_pe = k_pe_,
                                 .out = heads_out_,
                                 .codes = codes,
                                 .num_tokens = step_.num_tokens(),
                                 .num_keys = window.num_keys,
                                 .num_heads = heads_,
                                 .scale = dims_.softmax_scale,
                                 .tiles = window.tiles,
                                 .num_tiles = window.num_tiles,
                                 .num_sms = num_sms_,
                                 .counter = tile_counter_,
                                 .state = state},
                                launch);
  });
}

absl::Status Attention::generic(const PreparedAttention& weights, const LatentPages& pages) {
  const kernels::generic::AttentionDims sizes = generic_sizes();
  const bool splits = step_.num_tokens() <= generic_split_tokens_;
  const int64_t tokens = step_.num_tokens();
  R1D_RETURN_IF_ERROR(launches_(Kind::kAbsorb, {}, [&](const Launch& launch) {
    return kernels::generic::absorb({.dims = sizes,
                                     .kv_b = weights.kv_b.raw,
                                     .q = q_,
                                     .q_stride = heads_ * query_dim_,
                                     .cos_sin = step_.cos_sin(),
                                     .interleave = dims_.rope_interleave,
                                     .q_latent = generic_q_,
                                     .num_tokens = tokens},
                                    launch);
  }));
  R1D_RETURN_IF_ERROR(launches_(Kind::kDecode, {}, [&](const Launch& launch) {
    return kernels::generic::attend({.dims = sizes,
                                     .q_latent = generic_q_,
                                     .cache = cache_of(pages),
                                     .sequences = step_.all(),
                                     .softmax_scale = dims_.softmax_scale,
                                     .o_latent = generic_o_,
                                     .num_tokens = tokens,
                                     .workspace = splits ? generic_workspace_ : nullptr,
                                     .max_context_len = options_.max_model_len},
                                    launch);
  }));
  return launches_(Kind::kExpand, {}, [&](const Launch& launch) {
    return kernels::generic::expand({.dims = sizes,
                                     .kv_b = weights.kv_b.raw,
                                     .o_latent = generic_o_,
                                     .out = heads_out_,
                                     .out_stride = heads_ * dims_.v_head_dim,
                                     .num_tokens = tokens},
                                    launch);
  });
}

}  // namespace r1d::ops::cuda
