// SPDX-License-Identifier: Apache-2.0
// The absorbed form: queries move into latent space, where all heads share one key row per
// position.
#include <algorithm>
#include <array>

#include "ops/cpu/attention.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/latent_rows.h"

namespace r1d::ops::cpu {

void Attention::attend_absorbed(const Matrix& kv_b,
                                const LatentPages& pages,
                                int64_t first,
                                int64_t count) {
  find_stretches(first, count);
  const int64_t absorb_work = count * heads_ * dims_.qk_nope_head_dim * latent_dim_;
  parallel_.run(heads_, absorb_work, [&](int64_t head, int32_t thread) {
    absorb_queries(kv_b, head, thread);
  });

  int64_t pairs = 0;
  for (int64_t i = 0; i < count; ++i) pairs += absorbed_[static_cast<size_t>(first + i)].keys;
  // Heads that share a task share the reads of the keys; but every thread wants a few tasks.
  const int64_t wanted = count * heads_ / (parallel_.num_threads() * 4) / 4 * 4;
  const int64_t group = std::clamp<int64_t>(wanted, 4, kQueryTile);
  const int64_t groups = (heads_ + group - 1) / group;
  parallel_.run(
      count * groups, pairs * heads_ * (row_dim_ + latent_dim_), [&](int64_t task, int32_t thread) {
        const int64_t index = task / groups;
        const int64_t head = task % groups * group;
        const AbsorbedToken& token = absorbed_[static_cast<size_t>(first + index)];
        absorbed_heads(pages, token, index, head, std::min(group, heads_ - head), thread);
      });
  expand_outputs(kv_b);
}

void Attention::find_stretches(int64_t first, int64_t count) {
  stretches_.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = absorbed_[static_cast<size_t>(first + i)].row;
    if (!stretches_.empty() && stretches_.back().row + stretches_.back().count == row) {
      ++stretches_.back().count;
    } else {
      stretches_.push_back({.index = i, .row = row, .count = 1});
    }
  }
}

// q_latent = q_nope . UK | q_pe for one head of all absorbed tokens; UK = the head's first dn rows
// of kv_b, converted a panel at a time.
void Attention::absorb_queries(const Matrix& kv_b, int64_t head, int32_t thread) {
  const int64_t dn = dims_.qk_nope_head_dim;
  const int64_t q_stride = heads_ * key_dim_;
  const int64_t out_stride = heads_ * row_dim_;
  static constexpr auto kKeepAll = [] {
    std::array<float, kAbsorbedTokens> ones{};
    ones.fill(1.0F);
    return ones;
  }();
  for (const Stretch& s : stretches_) {
    for (int64_t i = 0; i < s.count; ++i) {
      float* out = q_latent_ + (s.index + i) * out_stride + head * row_dim_;
      std::fill_n(out, latent_dim_, 0.0F);
      const float* q_pe = q_ + (s.row + i) * q_stride + head * key_dim_ + dn;
      std::copy_n(q_pe, dims_.qk_rope_head_dim, out + latent_dim_);
    }
  }
  float* panel = gemm_.panel(thread);
  const void* rows[kPanelRows];
  for (int64_t d = 0; d < dn; d += kPanelRows) {
    const int64_t count = std::min(kPanelRows, dn - d);
    const int64_t row = head * (dn + value_dim_) + d;
    dequantize_rows(kv_b, row, row + count, panel, latent_dim_);
    for (int64_t i = 0; i < count; ++i) rows[i] = panel + i * latent_dim_;
    for (const Stretch& s : stretches_) {
      weighted_sum_rows({rows, count, DType::kF32},
                        latent_dim_,
                        q_ + s.row * q_stride + head * key_dim_ + d,
                        q_stride,
                        s.count,
                        kKeepAll.data(),
                        q_latent_ + s.index * out_stride + head * row_dim_,
                        out_stride);
    }
  }
}

// o_latent of `count` heads of one token: scores over the cached rows, softmax, sum of latents.
void Attention::absorbed_heads(const LatentPages& pages,
                               const AbsorbedToken& token,
                               int64_t index,
                               int64_t head,
                               int64_t count,
                               int32_t thread) {
  const float* queries = q_latent_ + (index * heads_ + head) * row_dim_;
  float* out = o_latent_ + (index * heads_ + head) * latent_dim_;
  std::fill_n(out, count * latent_dim_, 0.0F);
  SoftmaxState states[kQueryTile];
  float decay[kQueryTile];
  const void* rows[kKeyTile];
  for (int64_t key = 0; key < token.keys; key += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, token.keys - key);
    const RowList list = latent_rows(
        pages, latent_dim_, *token.sequence, key, keys, naive_scratch(thread).latents, rows);
    dot_rows(list, row_dim_, queries, row_dim_, count, scores(thread), kKeyTile);
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores(thread) + i * kKeyTile;
      decay[i] = softmax_update(row, keys, dims_.softmax_scale, states[i]);
    }
    weighted_sum_rows(list, latent_dim_, scores(thread), kKeyTile, count, decay, out, latent_dim_);
  }
  for (int64_t i = 0; i < count; ++i) {
    scale(out + i * latent_dim_, 1.0F / states[i].sum, out + i * latent_dim_, latent_dim_);
  }
}

// o = UV . o_latent per head; UV = the head's last dv rows of kv_b.
void Attention::expand_outputs(const Matrix& kv_b) {
  const int64_t dn = dims_.qk_nope_head_dim;
  jobs_.clear();
  for (const Stretch& s : stretches_) {
    for (int64_t h = 0; h < heads_; ++h) {
      jobs_.push_back({.weights = slice_rows(kv_b, h * (dn + value_dim_) + dn, value_dim_),
                       .x = o_latent_ + (s.index * heads_ + h) * latent_dim_,
                       .x_stride = heads_ * latent_dim_,
                       .tokens = s.count,
                       .y = heads_out_ + (s.row * heads_ + h) * value_dim_,
                       .y_stride = heads_ * value_dim_,
                       .exact = true});
    }
  }
  gemm_.run(jobs_);
}

}  // namespace r1d::ops::cpu
