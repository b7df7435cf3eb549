// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "r1d/engine/executor.h"
#include "r1d/ops/ops.h"

namespace r1d::engine {

// Lays a batch out as the model reads it. Reused from step to step: grows to the largest batch
// once.
class StepInputBuilder {
 public:
  // Borrows the batch's block tables until the next call.
  const ops::StepInputs& build(std::span<const SequenceStep> batch);

 private:
  std::vector<TokenId> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<ops::SequenceSpan> sequences_;
  std::vector<int32_t> logit_rows_;
  ops::StepInputs inputs_;
};

}  // namespace r1d::engine
