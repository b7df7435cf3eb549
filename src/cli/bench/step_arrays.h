// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "r1d/ops/ops.h"

namespace r1d::cli::bench {

// Host arrays of a step and the views of them that StepInputs borrows.
struct StepArrays {
  std::vector<TokenId> ids;
  std::vector<int32_t> positions;
  std::vector<BlockId> blocks;
  std::vector<ops::SequenceSpan> sequences;
  std::vector<int32_t> logit_rows;

  [[nodiscard]] ops::StepInputs inputs() const {
    return {
        .token_ids = ids, .positions = positions, .sequences = sequences, .logit_rows = logit_rows};
  }
};

// `batch` sequences of `query` new tokens at the end of `context` tokens, each with its own blocks.
[[nodiscard]] StepArrays make_step(int32_t batch,
                                   int32_t query,
                                   int32_t context,
                                   int32_t block_size,
                                   int64_t vocab,
                                   uint64_t seed);

}  // namespace r1d::cli::bench
