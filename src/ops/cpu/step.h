// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/status.h>

#include "r1d/ops/ops.h"

#include "ops/cpu/host_memory.h"

namespace r1d::ops::cpu {

// What all layers of a step share: the inputs, which sequence a token belongs to, and the rope
// angles.
class Step {
 public:
  Step(const ModelDims& dims, int64_t max_tokens) : dims_(dims), max_tokens_(max_tokens) {}

  void layout(Arena& arena);

  // Checks the inputs and computes the tables. The spans are borrowed until the next begin().
  [[nodiscard]] absl::Status begin(const StepInputs& inputs);

  [[nodiscard]] const StepInputs& inputs() const { return inputs_; }
  [[nodiscard]] int64_t num_tokens() const {
    return static_cast<int64_t>(inputs_.token_ids.size());
  }
  [[nodiscard]] const SequenceSpan& sequence_of(int64_t token) const {
    return inputs_.sequences[static_cast<size_t>(sequence_of_[token])];
  }

  // Turns x [qk_rope_head_dim] by the angles of the token's position, in place. Pairs are (2j,
  // 2j+1) when interleaved and (j, j + dr/2) otherwise; an output pair stays where its input was.
  void rotate(int64_t token, float* x) const;

 private:
  [[nodiscard]] absl::Status check(const StepInputs& inputs) const;
  [[nodiscard]] absl::Status assign_sequences();
  void compute_angles();

  const ModelDims& dims_;
  const int64_t max_tokens_;
  StepInputs inputs_;
  int32_t* sequence_of_ = nullptr;  // [max_tokens]
  float* cos_ = nullptr;            // [max_tokens, dr / 2]
  float* sin_ = nullptr;
};

}  // namespace r1d::ops::cpu
