// SPDX-License-Identifier: Apache-2.0
// The naive form: latents are expanded to keys and values, a tile of keys and one head at a time.
#include <algorithm>

#include "ops/cpu/attention.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/latent_rows.h"

namespace r1d::ops::cpu {
namespace {

// Pointers to the rows of a dense matrix.
void dense_rows(const float* data, int64_t stride, int64_t count, const void** rows) {
  for (int64_t i = 0; i < count; ++i) rows[i] = data + i * stride;
}

}  // namespace

Attention::NaiveScratch Attention::naive_scratch(int32_t thread) const {
  return {.keys = tile_keys_ + thread * kKeyTile * key_dim_,
          .values = tile_values_ + thread * kKeyTile * value_dim_,
          .latents = tile_latents_ + thread * kKeyTile * row_dim_,
          .states = states_ + thread * chunk_};
}

void Attention::attend_naive(const Matrix& kv_b, const LatentPages& pages) {
  int64_t work = 0;
  for (const NaiveRun& run : naive_runs_) {
    work += heads_ * naive_cost(dims_, run.count, run.position + run.count);
  }
  const auto runs = static_cast<int64_t>(naive_runs_.size());
  parallel_.run(runs * heads_, work, [&](int64_t task, int32_t thread) {
    const NaiveRun& run = naive_runs_[static_cast<size_t>(task / heads_)];
    naive_head(run, task % heads_, kv_b, pages, thread);
  });
}

void Attention::naive_head(const NaiveRun& run,
                           int64_t head,
                           const Matrix& kv_b,
                           const LatentPages& pages,
                           int32_t thread) {
  SoftmaxState* states = naive_scratch(thread).states;
  std::fill_n(states, run.count, SoftmaxState{});
  const int64_t stride = heads_ * value_dim_;
  float* out = heads_out_ + run.row * stride + head * value_dim_;
  for (int64_t i = 0; i < run.count; ++i) std::fill_n(out + i * stride, value_dim_, 0.0F);
  const int64_t keys = run.position + run.count;
  for (int64_t first_key = 0; first_key < keys; first_key += kKeyTile) {
    const int64_t count = std::min(kKeyTile, keys - first_key);
    expand_tile(run, head, kv_b, pages, first_key, count, thread);
    naive_tile(run, head, first_key, count, thread);
  }
  for (int64_t i = 0; i < run.count; ++i) {
    scale(out + i * stride, 1.0F / states[i].sum, out + i * stride, value_dim_);
  }
}

// keys = k_nope | k_pe and values of one head for `count` positions.
void Attention::expand_tile(const NaiveRun& run,
                            int64_t head,
                            const Matrix& kv_b,
                            const LatentPages& pages,
                            int64_t first_key,
                            int64_t count,
                            int32_t thread) {
  const int64_t dn = dims_.qk_nope_head_dim;
  const NaiveScratch tile = naive_scratch(thread);
  for (int64_t i = 0; i < count; ++i) {
    load_latent(pages,
                latent_dim_,
                *run.sequence,
                first_key + i,
                tile.latents + i * latent_dim_,
                tile.keys + i * key_dim_ + dn);
  }
  const auto expand = [&](int64_t first_row, int64_t rows, float* y, int64_t y_stride) {
    const GemmJob job{.weights = slice_rows(kv_b, head * (dn + value_dim_) + first_row, rows),
                      .x = tile.latents,
                      .x_stride = latent_dim_,
                      .tokens = count,
                      .y = y,
                      .y_stride = y_stride};
    gemm_range(job, {.row_end = rows, .token_end = count}, gemm_.panel(thread));
  };
  expand(0, dn, tile.keys, key_dim_);
  expand(dn, value_dim_, tile.values, value_dim_);
}

// All queries of the run that see a key of the tile.
void Attention::naive_tile(
    const NaiveRun& run, int64_t head, int64_t first_key, int64_t count, int32_t thread) {
  const NaiveScratch tile = naive_scratch(thread);
  const void* key_rows[kKeyTile];
  const void* value_rows[kKeyTile];
  dense_rows(tile.keys, key_dim_, count, key_rows);
  dense_rows(tile.values, value_dim_, count, value_rows);
  const int64_t q_stride = heads_ * key_dim_;
  const int64_t out_stride = heads_ * value_dim_;
  float decay[kQueryTile];
  for (int64_t q = std::max<int64_t>(0, first_key - run.position); q < run.count; q += kQueryTile) {
    const int64_t queries = std::min(kQueryTile, run.count - q);
    const auto seen_by = [&](int64_t i) {  // keys of the tile that query q + i sees
      return std::min(count, run.position + q + i + 1 - first_key);
    };
    const int64_t seen = seen_by(queries - 1);
    dot_rows({key_rows, seen, DType::kF32},
             key_dim_,
             q_ + (run.row + q) * q_stride + head * key_dim_,
             q_stride,
             queries,
             scores(thread),
             kKeyTile);
    for (int64_t i = 0; i < queries; ++i) {
      float* row = scores(thread) + i * kKeyTile;
      decay[i] = softmax_update(row, seen_by(i), dims_.softmax_scale, tile.states[q + i]);
      std::fill(row + seen_by(i), row + seen, 0.0F);  // later keys weigh nothing
    }
    weighted_sum_rows({value_rows, seen, DType::kF32},
                      value_dim_,
                      scores(thread),
                      kKeyTile,
                      queries,
                      decay,
                      heads_out_ + (run.row + q) * out_stride + head * value_dim_,
                      out_stride);
  }
}

}  // namespace r1d::ops::cpu
