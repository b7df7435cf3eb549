// SPDX-License-Identifier: Apache-2.0
#include "engine/step_inputs.h"

#include "r1d/base/check.h"

namespace r1d::engine {

const ops::StepInputs& StepInputBuilder::build(std::span<const SequenceStep> batch) {
  token_ids_.clear();
  positions_.clear();
  sequences_.clear();
  logit_rows_.clear();
  for (const SequenceStep& step : batch) {
    const int32_t end = step.start + step.count;
    const bool follows = step.follows >= 0;
    R1D_CHECK(step.count > 0 && (!follows || step.count == 1));
    R1D_CHECK(static_cast<size_t>(end) <= step.tokens.size() + (follows ? 1 : 0));
    sequences_.push_back({.query_begin = static_cast<int32_t>(token_ids_.size()),
                          .query_len = step.count,
                          .context_len = end,
                          .block_table = step.block_table});
    for (int32_t position = step.start; position < end; ++position) {
      token_ids_.push_back(follows ? ops::follow_row(step.follows)
                                   : step.tokens[static_cast<size_t>(position)]);
      positions_.push_back(position);
    }
    if (step.sampling != nullptr)
      logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
  }
  inputs_ = {.token_ids = token_ids_,
             .positions = positions_,
             .sequences = sequences_,
             .logit_rows = logit_rows_};
  return inputs_;
}

}  // namespace r1d::engine
