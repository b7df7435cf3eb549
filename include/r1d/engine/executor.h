// SPDX-License-Identifier: Apache-2.0
// What the scheduler asks of the engine: run one step over one batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"
#include "r1d/engine/sampling.h"

namespace r1d::engine {

// One sequence's share of a step: tokens [start, start + count) of its history enter the model.
// All pointers and spans borrow from the scheduler until execute() returns.
struct SequenceStep {
  SequenceId sequence = 0;
  std::span<const TokenId> tokens;  // whole history: prompt, then output
  int32_t num_prompt_tokens = 0;
  int32_t start = 0;
  int32_t count = 0;
  std::span<const BlockId> block_table;      // covers [0, start + count)
  const SamplingParams* sampling = nullptr;  // null: a chunk that is not the last, nothing sampled
  bool capture_logits = false;               // return the raw row (self-check)
};

struct StepOutput {
  std::vector<SampledToken> tokens;  // one per SequenceStep; meaningless where nothing was sampled
};

// Threads: execute() is called by the step loop's thread alone; progress() by any.
class Executor {
 public:
  virtual ~Executor() = default;

  // Runs one forward pass and samples. Blocks until done. An error is fatal to the engine.
  [[nodiscard]] virtual absl::StatusOr<StepOutput> execute(std::span<const SequenceStep> batch) = 0;

  // Grows while a step moves, several times a layer on the CPU, so that a long prefill is not taken
  // for a hang. On a GPU a step counts its layers when it enqueues them, then stands still until it
  // is done.
  [[nodiscard]] virtual uint64_t progress() const = 0;
};

}  // namespace r1d::engine
