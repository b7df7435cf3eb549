// SPDX-License-Identifier: Apache-2.0
// What the scheduler asks of the engine: run one step over one batch.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"
#include "r1d/engine/sampling.h"

namespace r1d::engine {

// One sequence's share of a step: tokens [start, start + count) of its history enter the model.
// All pointers and spans borrow from the scheduler until start() or execute() returns.
struct SequenceStep {
  SequenceId sequence = 0;
  std::span<const TokenId> tokens;  // whole history: prompt, then output, as far as it is known
  int32_t num_prompt_tokens = 0;
  int32_t start = 0;
  int32_t count = 0;
  std::span<const BlockId> block_table;      // covers [0, start + count)
  const SamplingParams* sampling = nullptr;  // null: a chunk that is not the last, nothing sampled
  bool capture_logits = false;               // return the raw row (self-check)
  // Not negative: the history's newest token is the one that the step in flight samples in this row
  // of those that sample; it is not in `tokens` yet, and count is 1.
  int32_t follows = -1;
};

struct StepOutput {
  std::vector<SampledToken> tokens;  // one per SequenceStep; meaningless where nothing was sampled
};

// What a failed step died of, where that leaves weights, devices and threads as they were.
enum class RecoveryCause : uint8_t {
  kStall,         // nothing moved, and it was interrupted (kDeadlineExceeded)
  kCommunicator,  // ranks lost each other (kUnavailable, kAborted)
  kMemory,        // a host allocation failed (kResourceExhausted)
};
[[nodiscard]] const char* recovery_cause_name(RecoveryCause cause);  // "stall", ...

// None for every other code: a device's error, an exception of unknown kind, a step that
// contradicts itself say nothing about what is still sound.
[[nodiscard]] std::optional<RecoveryCause> recovery_cause(const absl::Status& failure);

// Threads: execute(), start(), finish() and recover() are called by the step loop's thread alone,
// the rest by any.
class Executor {
 public:
  virtual ~Executor() = default;

  // Runs one forward pass and samples. Blocks until done; no other step is in flight. After an
  // error what the step wrote is void, and the next call is recover() where recovery_cause() has
  // one; else the engine is lost.
  [[nodiscard]] virtual absl::StatusOr<StepOutput> execute(std::span<const SequenceStep> batch) = 0;

  // The same in two halves, so that the host prepares a step while the device computes the one
  // before. start() returns when the step is on its way, finish() when the oldest step that was
  // started is done. So many steps may be started before the oldest one is finished, besides that
  // one; they run in their order, and only behind one may `follows` be set. 0: start() runs the
  // step. An error of either is as one of execute(), and voids all that were started.
  [[nodiscard]] virtual int32_t steps_ahead() const { return 0; }
  [[nodiscard]] virtual absl::Status start(std::span<const SequenceStep> batch) {
    done_ = execute(batch);
    return done_.status();
  }
  [[nodiscard]] virtual absl::StatusOr<StepOutput> finish() { return std::move(done_); }

  // Grows while a step moves, several times a layer on the CPU, so that a long prefill is not taken
  // for a hang. On a GPU a step counts its layers when it enqueues them, then stands still until it
  // is done.
  [[nodiscard]] virtual uint64_t progress() const = 0;

  // Has the step in flight, if any, fail with `why` (kDeadlineExceeded) as soon as it can: ranks
  // that wait for each other come back, one that hangs by itself does not. Does not wait for that.
  virtual void interrupt(const absl::Status& why) { static_cast<void>(why); }

  // After a failed execute(): makes steps possible again, with the weights as they are. An error:
  // it is not possible, the engine is lost.
  [[nodiscard]] virtual absl::Status recover() {
    return absl::FailedPreconditionError("this executor does not recover");
  }

 private:
  absl::StatusOr<StepOutput> done_;
};

}  // namespace r1d::engine
