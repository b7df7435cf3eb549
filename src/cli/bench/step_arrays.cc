// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/step_arrays.h"

#include <span>

#include "r1d/base/random.h"

namespace r1d::cli::bench {

StepArrays make_step(int32_t batch,
                     int32_t query,
                     int32_t context,
                     int32_t block_size,
                     int64_t vocab,
                     uint64_t seed) {
  StepArrays step;
  const int32_t blocks_each = (context + block_size - 1) / block_size;
  step.blocks.resize(static_cast<size_t>(batch) * static_cast<size_t>(blocks_each));
  for (size_t i = 0; i < step.blocks.size(); ++i) step.blocks[i] = static_cast<BlockId>(i);
  for (int32_t s = 0; s < batch; ++s) {
    step.sequences.push_back({.query_begin = s * query,
                              .query_len = query,
                              .context_len = context,
                              .block_table = std::span(step.blocks)
                                                 .subspan(static_cast<size_t>(s * blocks_each),
                                                          static_cast<size_t>(blocks_each))});
    for (int32_t i = 0; i < query; ++i) {
      const auto draw = base::random_bits(seed, static_cast<uint64_t>(step.ids.size()));
      step.ids.push_back(static_cast<TokenId>(draw % static_cast<uint64_t>(vocab)));
      step.positions.push_back(context - query + i);
    }
    step.logit_rows.push_back(s * query + query - 1);
  }
  return step;
}

}  // namespace r1d::cli::bench
