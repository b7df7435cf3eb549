// SPDX-License-Identifier: Apache-2.0
// An MLA block with random weights, its f64 reference, and a driver that feeds sequences in chunks
// through a paged cache.
#pragma once

#include <cstdint>
#include <vector>

#include "r1d/ops/cpu_ops.h"

#include "tests/ops/reference.h"

namespace r1d::ops::test {

struct AttentionShape {
  const char* name;
  int64_t hidden, heads, q_lora, latent, nope, rope, value;  // q_lora 0: none
  DType dtype;
  bool interleave = true;
};

struct AttentionModel {
  ModelDims dims;
  TestMatrix q_a, q_b, kv_a, kv_b, o;
  std::vector<float> q_a_norm, kv_a_norm;

  [[nodiscard]] AttentionWeights weights() const;
};

[[nodiscard]] AttentionModel random_attention(const AttentionShape& shape, uint64_t seed);

// Rank `rank` of `world`: its heads' rows and columns.
[[nodiscard]] AttentionModel slice(const AttentionModel& model, int32_t rank, int32_t world);

// The naive form in f64 over a whole sequence x [S, D] -> [S, D]. Latents are rounded as
// the cache rounds them.
[[nodiscard]] std::vector<double> attend(const AttentionModel& model,
                                         std::span<const float> x,
                                         DType page_dtype);

// Lengths of the chunks in which a sequence enters, one per step.
using Chunks = std::vector<int32_t>;

struct AttentionRun {
  MlaForm form = MlaForm::kAuto;
  DType page_dtype = DType::kF32;
  int32_t block_size = 64;
  int32_t threads = 2;
  uint64_t seed = 1;  // of the order of blocks
};

// Hidden states of sequence `id`.
[[nodiscard]] std::vector<float> sequence_input(const AttentionModel& model,
                                                uint64_t id,
                                                const Chunks& chunks);

// Runs all sequences (id, chunks) together, step by step; every row of each, [S, D].
[[nodiscard]] std::vector<std::vector<float>> run_attention(
    const AttentionModel& model,
    const std::vector<std::pair<uint64_t, Chunks>>& sequences,
    const AttentionRun& run);

}  // namespace r1d::ops::test
