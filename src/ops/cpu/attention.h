// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "r1d/ops/cpu_ops.h"
#include "r1d/ops/ops.h"

#include "ops/cpu/gemm.h"
#include "ops/cpu/host_memory.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/step.h"

namespace r1d::ops::cpu {

// Multiplications per head of the two forms of MLA for `queries` tokens over `keys` cached
// positions. Naive expands every latent to k_nope | v (R * (dn + dv) each), then scores and sums in
// head space (dn + dr + dv a pair). Absorbed moves the same R * (dn + dv) to each query, then works
// on the latents (2 R + dr a pair).
[[nodiscard]] int64_t naive_cost(const ModelDims& dims, int64_t queries, int64_t keys);
[[nodiscard]] int64_t absorbed_cost(const ModelDims& dims, int64_t queries, int64_t keys);

// Whether a sequence's share of a step takes the absorbed form. Depends on that sequence alone; a
// single query always absorbs under kAuto, so that decode is one form at any length.
[[nodiscard]] bool takes_absorbed(MlaForm form,
                                  const ModelDims& dims,
                                  int64_t queries,
                                  int64_t keys);

// One MLA block (DeepSeek-V2 report, section 2.1, arXiv 2405.04434). Query tokens are processed
// kQueryTokens at a time, keys kKeyTile at a time from position 0 with a running softmax, so that a
// query's result does not depend on what else is in the step.
class Attention {
 public:
  static constexpr int64_t kQueryTokens = 1024;    // tokens projected and attended together
  static constexpr int64_t kAbsorbedTokens = 256;  // of them, in latent space together
  static constexpr int64_t kKeyTile = 128;
  static constexpr int64_t kQueryTile = 32;  // rows of a score tile

  Attention(const ModelDims& dims,
            MlaForm form,
            Parallel& parallel,
            Gemm& gemm,
            const Step& step,
            int64_t max_tokens);

  void layout(Arena& arena);

  void run(const AttentionWeights& weights,
           const LatentPages& pages,
           const Tensor& x,
           const Tensor& out);

 private:
  // Consecutive query tokens of one sequence, naive form: rows of the chunk.
  struct NaiveRun {
    const SequenceSpan* sequence = nullptr;
    int64_t row = 0;
    int64_t count = 0;
    int64_t position = 0;  // of the first
  };
  // One query token in absorbed form.
  struct AbsorbedToken {
    const SequenceSpan* sequence = nullptr;
    int64_t row = 0;   // of the chunk
    int64_t keys = 0;  // positions it sees
  };
  // Tokens [index, index + count) of the absorbed list have consecutive chunk rows.
  struct Stretch {
    int64_t index = 0;
    int64_t row = 0;
    int64_t count = 0;
  };
  struct NaiveScratch {
    float* keys = nullptr;           // [kKeyTile, dn + dr]
    float* values = nullptr;         // [kKeyTile, dv]
    float* latents = nullptr;        // [kKeyTile, R]; absorbed: [kKeyTile, R + dr]
    SoftmaxState* states = nullptr;  // [kQueryTokens]
  };

  void project_inputs(const AttentionWeights& weights,
                      const Tensor& x,
                      int64_t first,
                      int64_t count);
  void norm_latent(const LatentPages& pages, const float* norm, int64_t token, float* kv) const;
  void finish_queries(const AttentionWeights& weights, int64_t first, int64_t count);
  void attend(const AttentionWeights& weights,
              const LatentPages& pages,
              int64_t first,
              int64_t count);

  void attend_naive(const Matrix& kv_b, const LatentPages& pages);
  void naive_head(const NaiveRun& run,
                  int64_t head,
                  const Matrix& kv_b,
                  const LatentPages& pages,
                  int32_t thread);
  void expand_tile(const NaiveRun& run,
                   int64_t head,
                   const Matrix& kv_b,
                   const LatentPages& pages,
                   int64_t first_key,
                   int64_t count,
                   int32_t thread);
  void naive_tile(
      const NaiveRun& run, int64_t head, int64_t first_key, int64_t count, int32_t thread);

  void attend_absorbed(const Matrix& kv_b, const LatentPages& pages, int64_t first, int64_t count);
  void find_stretches(int64_t first, int64_t count);
  void absorb_queries(const Matrix& kv_b, int64_t head, int32_t thread);
  void absorbed_heads(const LatentPages& pages,
                      const AbsorbedToken& token,
                      int64_t index,
                      int64_t head,
                      int64_t count,
                      int32_t thread);
  void expand_outputs(const Matrix& kv_b);

  [[nodiscard]] NaiveScratch naive_scratch(int32_t thread) const;
  [[nodiscard]] float* scores(int32_t thread) const {
    return scores_ + thread * kQueryTile * kKeyTile;
  }

  const ModelDims& dims_;
  const MlaForm form_;
  Parallel& parallel_;
  Gemm& gemm_;
  const Step& step_;
  const int64_t chunk_;           // min(max_tokens, kQueryTokens)
  const int64_t absorbed_chunk_;  // min(max_tokens, kAbsorbedTokens)
  const int64_t heads_;           // H
  const int64_t key_dim_;         // dn + dr
  const int64_t value_dim_;       // dv
  const int64_t latent_dim_;      // R
  const int64_t row_dim_;         // R + dr, a row of the cache

  float* q_low_ = nullptr;      // [chunk, q_lora]
  float* q_ = nullptr;          // [chunk, H, dn + dr]
  float* kv_ = nullptr;         // [chunk, R + dr]
  float* heads_out_ = nullptr;  // [chunk, H, dv]
  float* q_latent_ = nullptr;   // [absorbed_chunk, H, R + dr]
  float* o_latent_ = nullptr;   // [absorbed_chunk, H, R]
  float* scores_ = nullptr;     // [threads, kQueryTile, kKeyTile]
  float* tile_keys_ = nullptr;  // [threads, ...], see NaiveScratch
  float* tile_values_ = nullptr;
  float* tile_latents_ = nullptr;
  SoftmaxState* states_ = nullptr;

  std::vector<NaiveRun> naive_runs_;
  std::vector<AbsorbedToken> absorbed_;
  std::vector<Stretch> stretches_;
  std::vector<GemmJob> jobs_;
};

}  // namespace r1d::ops::cpu
