// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "r1d/ops/ops.h"

#include "ops/cpu/gemm.h"
#include "ops/cpu/host_memory.h"
#include "ops/cpu/parallel.h"

namespace r1d::ops::cpu {

// Dense and mixture-of-experts feed-forward blocks. An assignment is one token at one expert; they
// are sorted by expert, then token, and go through the experts in waves of as many rows as the
// scratch holds. Every output element is the sum over its token's experts in ascending order, the
// shared expert last: the same bits however the waves fall.
class FeedForward {
 public:
  FeedForward(const ModelDims& dims, Parallel& parallel, Gemm& gemm, int64_t max_tokens);

  void layout(Arena& arena);

  void mlp(const MlpWeights& weights, const Tensor& x, const Tensor& out);
  void moe(const MoeWeights& weights, const Tensor& x, const Tensor& out);

 private:
  // Assignments [begin, end) go to one expert.
  struct Segment {
    const MlpWeights* weights = nullptr;
    int64_t begin = 0;
    int64_t end = 0;
  };

  void route(const MoeWeights& weights, const Tensor& x);
  void sort_by_expert(const MoeWeights& weights, int64_t tokens);
  void append_all_tokens(const MlpWeights& weights, int64_t tokens);
  void run_segments(const Tensor& x, const Tensor& out);
  void run_wave(const Tensor& x, const Tensor& out);
  void add_wave(const Tensor& out);

  const ModelDims& dims_;
  Parallel& parallel_;
  Gemm& gemm_;
  const int64_t max_tokens_;
  const int64_t wave_rows_;

  // Router, for kRouterTokens tokens at a time; chosen experts and weights [T, top_k].
  float* router_logits_ = nullptr;
  float* router_scratch_ = nullptr;  // [threads, router_scratch()]
  int32_t* chosen_ = nullptr;
  float* chosen_weight_ = nullptr;
  // Sorted assignments, max_tokens * (top_k + 1).
  int32_t* token_of_ = nullptr;
  float* weight_of_ = nullptr;
  // A wave's activations, row i = assignment wave_begin_ + i.
  float* gate_ = nullptr;  // [wave_rows, max_intermediate]
  float* up_ = nullptr;
  float* down_ = nullptr;  // [wave_rows, D]

  std::vector<Segment> segments_;
  std::vector<Segment> wave_;
  std::vector<GemmJob> jobs_;
  std::vector<int64_t> next_of_expert_;
};

}  // namespace r1d::ops::cpu
