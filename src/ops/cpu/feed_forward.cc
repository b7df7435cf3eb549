// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/feed_forward.h"

#include <algorithm>

#include "r1d/base/check.h"

#include "ops/cpu/kernels.h"
#include "ops/cpu/router.h"

namespace r1d::ops::cpu {
namespace {

constexpr int64_t kRouterTokens = 1024;
// A wave: enough rows that reading an expert's weights is paid for, few enough that R1's widest MLP
// (18432 on one rank) needs 1024 * (2 * 18432 + 7168) * 4 = 180 MB.
constexpr int64_t kWaveRows = 1024;
// Columns of `out` that one task sums.
constexpr int64_t kSumColumns = 512;
// silu costs about as much as this many multiply-adds an element.
constexpr int64_t kSiluWork = 16;

const float* row_of(const Tensor& x, int64_t row) {
  return static_cast<const float*>(x.data) + row * x.stride;
}

float* mutable_row_of(const Tensor& x, int64_t row) {
  return static_cast<float*>(x.data) + row * x.stride;
}

}  // namespace

FeedForward::FeedForward(const ModelDims& dims, Parallel& parallel, Gemm& gemm, int64_t max_tokens)
    : dims_(dims),
      parallel_(parallel),
      gemm_(gemm),
      max_tokens_(max_tokens),
      wave_rows_(std::min(kWaveRows, max_tokens * (dims.router.top_k + 1))) {}

void FeedForward::layout(Arena& arena) {
  const RouterOptions& router = dims_.router;
  router_logits_ =
      arena.take<float>(std::min(kRouterTokens, max_tokens_) * int64_t{router.num_experts});
  router_scratch_ = arena.take<float>(parallel_.num_threads() * router_scratch(router));
  chosen_ = arena.take<int32_t>(max_tokens_ * router.top_k);
  chosen_weight_ = arena.take<float>(max_tokens_ * router.top_k);
  token_of_ = arena.take<int32_t>(max_tokens_ * (router.top_k + 1));
  weight_of_ = arena.take<float>(max_tokens_ * (router.top_k + 1));
  gate_ = arena.take<float>(wave_rows_ * dims_.max_intermediate);
  up_ = arena.take<float>(wave_rows_ * dims_.max_intermediate);
  down_ = arena.take<float>(wave_rows_ * dims_.hidden_size);
}

void FeedForward::mlp(const MlpWeights& weights, const Tensor& x, const Tensor& out) {
  segments_.clear();
  append_all_tokens(weights, x.rows);
  run_segments(x, out);
}

void FeedForward::moe(const MoeWeights& weights, const Tensor& x, const Tensor& out) {
  R1D_CHECK(weights.router.rows == dims_.router.num_experts);
  route(weights, x);
  sort_by_expert(weights, x.rows);
  if (weights.shared.gate.data != nullptr) append_all_tokens(weights.shared, x.rows);
  run_segments(x, out);
}

void FeedForward::route(const MoeWeights& weights, const Tensor& x) {
  const RouterOptions& options = dims_.router;
  const int64_t num_experts = options.num_experts;
  for (int64_t first = 0; first < x.rows; first += kRouterTokens) {
    const int64_t count = std::min(kRouterTokens, x.rows - first);
    gemm_.run({.weights = weights.router,
               .x = row_of(x, first),
               .x_stride = x.stride,
               .tokens = count,
               .y = router_logits_,
               .y_stride = num_experts,
               .exact = true});
    const int64_t work = count * num_experts * options.top_k;
    parallel_.run(count, work, [&](int64_t t, int32_t thread) {
      choose_experts(router_logits_ + t * num_experts,
                     weights.router_bias,
                     options,
                     router_scratch_ + thread * router_scratch(options),
                     chosen_ + (first + t) * options.top_k,
                     chosen_weight_ + (first + t) * options.top_k);
    });
  }
}

// A counting sort of the choices that fall on this rank's experts; stable, so tokens ascend.
void FeedForward::sort_by_expert(const MoeWeights& weights, int64_t tokens) {
  const auto local = static_cast<int64_t>(weights.experts.size());
  const int64_t choices = tokens * dims_.router.top_k;
  next_of_expert_.assign(static_cast<size_t>(local) + 1, 0);
  const auto local_index = [&](int64_t i) { return int64_t{chosen_[i]} - weights.first_expert; };
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = local_index(i);
    if (e >= 0 && e < local) ++next_of_expert_[static_cast<size_t>(e) + 1];
  }
  segments_.clear();
  for (int64_t e = 0; e < local; ++e) {
    int64_t& begin = next_of_expert_[static_cast<size_t>(e)];
    int64_t& end = next_of_expert_[static_cast<size_t>(e) + 1];
    end += begin;
    if (end > begin) segments_.push_back({&weights.experts[static_cast<size_t>(e)], begin, end});
  }
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = local_index(i);
    if (e < 0 || e >= local) continue;
    const int64_t place = next_of_expert_[static_cast<size_t>(e)]++;
    token_of_[place] = static_cast<int32_t>(i / dims_.router.top_k);
    weight_of_[place] = chosen_weight_[i];
  }
}

void FeedForward::append_all_tokens(const MlpWeights& weights, int64_t tokens) {
  const int64_t begin = segments_.empty() ? 0 : segments_.back().end;
  for (int64_t t = 0; t < tokens; ++t) {
    token_of_[begin + t] = static_cast<int32_t>(t);
    weight_of_[begin + t] = 1;
  }
  if (tokens > 0) segments_.push_back({&weights, begin, begin + tokens});
}

void FeedForward::run_segments(const Tensor& x, const Tensor& out) {
  for (int64_t t = 0; t < out.rows; ++t) std::fill_n(mutable_row_of(out, t), out.cols, 0.0F);
  wave_.clear();
  for (Segment left : segments_) {
    while (left.begin < left.end) {
      const int64_t wave_begin = wave_.empty() ? left.begin : wave_.front().begin;
      const int64_t end = std::min(left.end, wave_begin + wave_rows_);
      wave_.push_back({left.weights, left.begin, end});
      left.begin = end;
      if (end - wave_begin == wave_rows_) run_wave(x, out);
    }
  }
  if (!wave_.empty()) run_wave(x, out);
}

void FeedForward::run_wave(const Tensor& x, const Tensor& out) {
  const int64_t wave_begin = wave_.front().begin;
  const int64_t width = dims_.max_intermediate;
  jobs_.clear();
  int64_t silu_work = 0;
  for (const Segment& s : wave_) {
    R1D_CHECK(s.weights->gate.rows <= width && s.weights->up.rows == s.weights->gate.rows);
    GemmJob job{.weights = s.weights->gate,
                .x = row_of(x, 0),
                .x_stride = x.stride,
                .x_rows = token_of_ + s.begin,
                .tokens = s.end - s.begin,
                .y = gate_ + (s.begin - wave_begin) * width,
                .y_stride = width};
    jobs_.push_back(job);
    job.weights = s.weights->up;
    job.y = up_ + (s.begin - wave_begin) * width;
    jobs_.push_back(job);
    silu_work += job.tokens * s.weights->up.rows * kSiluWork;
  }
  gemm_.run(jobs_);

  const int64_t rows = wave_.back().end - wave_begin;
  parallel_.run(rows, silu_work, [&](int64_t row, int32_t /*thread*/) {
    const auto after = std::upper_bound(
        wave_.begin(), wave_.end(), wave_begin + row, [](int64_t a, const Segment& s) {
          return a < s.begin;
        });
    silu_mul(gate_ + row * width, up_ + row * width, (after - 1)->weights->gate.rows);
  });

  jobs_.clear();
  for (const Segment& s : wave_) {
    jobs_.push_back({.weights = s.weights->down,
                     .x = gate_ + (s.begin - wave_begin) * width,
                     .x_stride = width,
                     .tokens = s.end - s.begin,
                     .y = down_ + (s.begin - wave_begin) * dims_.hidden_size,
                     .y_stride = dims_.hidden_size});
  }
  gemm_.run(jobs_);
  add_wave(out);
  wave_.clear();
}

// Each task owns columns, so that rows of one token add up in order without locks.
void FeedForward::add_wave(const Tensor& out) {
  const int64_t begin = wave_.front().begin;
  const int64_t end = wave_.back().end;
  const int64_t width = dims_.hidden_size;
  const int64_t tasks = (width + kSumColumns - 1) / kSumColumns;
  parallel_.run(tasks, (end - begin) * width, [&](int64_t task, int32_t /*thread*/) {
    const int64_t col = task * kSumColumns;
    const int64_t cols = std::min(kSumColumns, width - col);
    for (int64_t a = begin; a < end; ++a) {
      float* row = mutable_row_of(out, token_of_[a]);
      add_scaled(row + col, weight_of_[a], down_ + (a - begin) * width + col, cols);
    }
  });
}

}  // namespace r1d::ops::cpu
