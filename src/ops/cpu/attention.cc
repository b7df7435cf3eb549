// SPDX-License-Identifier: Apache-2.0
// Projections, the latent cache, and the choice of form; attention_naive.cc and
// attention_absorbed.cc hold the forms.
#include "ops/cpu/attention.h"

#include <algorithm>

#include "r1d/base/check.h"

#include "ops/cpu/kernels.h"
#include "ops/cpu/latent_rows.h"

namespace r1d::ops::cpu {

int64_t naive_cost(const ModelDims& dims, int64_t queries, int64_t keys) {
  const int64_t dn = dims.qk_nope_head_dim;
  const int64_t dv = dims.v_head_dim;
  return keys * dims.kv_lora_rank * (dn + dv) + queries * keys * (dn + dims.qk_rope_head_dim + dv);
}

int64_t absorbed_cost(const ModelDims& dims, int64_t queries, int64_t keys) {
  return queries * dims.kv_lora_rank * (dims.qk_nope_head_dim + dims.v_head_dim) +
         queries * keys * (2 * dims.kv_lora_rank + dims.qk_rope_head_dim);
}

bool takes_absorbed(MlaForm form, const ModelDims& dims, int64_t queries, int64_t keys) {
  if (form != MlaForm::kAuto) return form == MlaForm::kAbsorbed;
  return queries == 1 || absorbed_cost(dims, queries, keys) < naive_cost(dims, queries, keys);
}

Attention::Attention(const ModelDims& dims,
                     MlaForm form,
                     Parallel& parallel,
                     Gemm& gemm,
                     const Step& step,
                     int64_t max_tokens)
    : dims_(dims),
      form_(form),
      parallel_(parallel),
      gemm_(gemm),
      step_(step),
      chunk_(std::min(max_tokens, kQueryTokens)),
      absorbed_chunk_(std::min(max_tokens, kAbsorbedTokens)),
      heads_(dims.num_heads),
      key_dim_(dims.qk_nope_head_dim + dims.qk_rope_head_dim),
      value_dim_(dims.v_head_dim),
      latent_dim_(dims.kv_lora_rank),
      row_dim_(dims.kv_lora_rank + dims.qk_rope_head_dim) {}

void Attention::layout(Arena& arena) {
  const int64_t threads = parallel_.num_threads();
  q_low_ = arena.take<float>(chunk_ * dims_.q_lora_rank);
  q_ = arena.take<float>(chunk_ * heads_ * key_dim_);
  kv_ = arena.take<float>(chunk_ * row_dim_);
  heads_out_ = arena.take<float>(chunk_ * heads_ * value_dim_);
  q_latent_ = arena.take<float>(absorbed_chunk_ * heads_ * row_dim_);
  o_latent_ = arena.take<float>(absorbed_chunk_ * heads_ * latent_dim_);
  scores_ = arena.take<float>(threads * kQueryTile * kKeyTile);
  tile_keys_ = arena.take<float>(threads * kKeyTile * key_dim_);
  tile_values_ = arena.take<float>(threads * kKeyTile * value_dim_);
  tile_latents_ = arena.take<float>(threads * kKeyTile * row_dim_);
  states_ = arena.take<SoftmaxState>(threads * chunk_);
}

void Attention::run(const AttentionWeights& weights,
                    const LatentPages& pages,
                    const Tensor& x,
                    const Tensor& out) {
  R1D_CHECK(x.rows == step_.num_tokens() && out.rows == x.rows && pages.width == row_dim_);
  for (const SequenceSpan& span : step_.inputs().sequences) check_blocks(pages, span);
  // A sequence's tokens ascend, so a query's keys of its own step lie in its chunk or before it.
  for (int64_t first = 0; first < x.rows; first += chunk_) {
    const int64_t count = std::min(chunk_, x.rows - first);
    project_inputs(weights, x, first, count);
    parallel_.run(count, count * row_dim_ * 4, [&](int64_t t, int32_t /*thread*/) {
      norm_latent(pages, weights.kv_a_norm, first + t, kv_ + t * row_dim_);
    });
    finish_queries(weights, first, count);
    attend(weights, pages, first, count);
    gemm_.run({.weights = weights.o,
               .x = heads_out_,
               .x_stride = heads_ * value_dim_,
               .tokens = count,
               .y = static_cast<float*>(out.data) + first * out.stride,
               .y_stride = out.stride});
  }
}

// The products of x, in one pass over the threads: latents, and queries or their low-rank form.
void Attention::project_inputs(const AttentionWeights& weights,
                               const Tensor& x,
                               int64_t first,
                               int64_t count) {
  const bool low_rank = weights.q_a.data != nullptr;
  GemmJob job{.weights = weights.kv_a,
              .x = static_cast<const float*>(x.data) + first * x.stride,
              .x_stride = x.stride,
              .tokens = count,
              .y = kv_,
              .y_stride = row_dim_};
  jobs_.assign(1, job);
  job.weights = low_rank ? weights.q_a : weights.q_b;
  job.y = low_rank ? q_low_ : q_;
  job.y_stride = low_rank ? dims_.q_lora_rank : heads_ * key_dim_;
  jobs_.push_back(job);
  gemm_.run(jobs_);
}

void Attention::norm_latent(const LatentPages& pages,
                            const float* norm,
                            int64_t token,
                            float* kv) const {
  rms_norm(kv, norm, dims_.rms_norm_eps, latent_dim_, kv);
  step_.rotate(token, kv + latent_dim_);
  const int32_t position = step_.inputs().positions[static_cast<size_t>(token)];
  store_latent(pages, latent_dim_, step_.sequence_of(token), position, kv);
}

void Attention::finish_queries(const AttentionWeights& weights, int64_t first, int64_t count) {
  if (weights.q_a.data != nullptr) {
    parallel_.run(count, count * dims_.q_lora_rank * 4, [&](int64_t t, int32_t /*thread*/) {
      float* row = q_low_ + t * dims_.q_lora_rank;
      rms_norm(row, weights.q_a_norm, dims_.rms_norm_eps, dims_.q_lora_rank, row);
    });
    gemm_.run({.weights = weights.q_b,
               .x = q_low_,
               .x_stride = dims_.q_lora_rank,
               .tokens = count,
               .y = q_,
               .y_stride = heads_ * key_dim_});
  }
  const int64_t work = count * heads_ * dims_.qk_rope_head_dim * 4;
  parallel_.run(count, work, [&](int64_t t, int32_t /*thread*/) {
    for (int64_t h = 0; h < heads_; ++h) {
      step_.rotate(first + t, q_ + (t * heads_ + h) * key_dim_ + dims_.qk_nope_head_dim);
    }
  });
}

// Sorts the chunk's tokens by form. The form is that of the whole sequence, also where a chunk
// boundary cuts it.
void Attention::attend(const AttentionWeights& weights,
                       const LatentPages& pages,
                       int64_t first,
                       int64_t count) {
  naive_runs_.clear();
  absorbed_.clear();
  int64_t length = 0;
  for (int64_t row = 0; row < count; row += length) {
    const SequenceSpan& span = step_.sequence_of(first + row);
    const int64_t offset = first + row - span.query_begin;
    length = std::min<int64_t>(span.query_len - offset, count - row);
    const int64_t position = span.context_len - span.query_len + offset;
    if (!takes_absorbed(form_, dims_, span.query_len, span.context_len)) {
      naive_runs_.push_back({&span, row, length, position});
      continue;
    }
    for (int64_t i = 0; i < length; ++i) absorbed_.push_back({&span, row + i, position + i + 1});
  }
  if (!naive_runs_.empty()) attend_naive(weights.kv_b, pages);
  const auto total = static_cast<int64_t>(absorbed_.size());
  for (int64_t i = 0; i < total; i += absorbed_chunk_) {
    attend_absorbed(weights.kv_b, pages, i, std::min(absorbed_chunk_, total - i));
  }
}

}  // namespace r1d::ops::cpu
