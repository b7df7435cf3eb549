// SPDX-License-Identifier: Apache-2.0
// Which sequences run next. A state machine: no thread, no clock, no tensor; events and time are
// arguments, so that a seeded simulation can run it for millions of steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>

#include "r1d/base/clock.h"
#include "r1d/engine/executor.h"
#include "r1d/scheduler/request.h"

namespace r1d::scheduler {

struct SchedulerOptions {
  int32_t max_batch_size = 64;             // sequences in a step at most
  int32_t max_num_batched_tokens = 32768;  // tokens in a step at most
  int32_t max_model_len = 0;               // prompt + output tokens of a sequence at most
  int32_t max_waiting_requests = 1024;     // add() refuses beyond it
  int32_t block_size = 64;                 // tokens a KV block
  int32_t num_blocks = 0;                  // must hold one sequence of max_model_len
  Duration batch_timeout{};                // how long an idle engine may wait to fill a first batch
  Duration priority_aging = std::chrono::seconds(10);  // a wait that counts as one priority level
  bool prefix_cache = true;
};

struct SchedulerStats {
  int32_t num_waiting = 0;          // sequences, preempted ones included
  int32_t num_queued_requests = 0;  // requests that never ran: what max_waiting_requests bounds
  int32_t num_running = 0;
  int32_t num_blocks = 0;
  int32_t num_blocks_used = 0;    // held by a sequence
  int32_t num_blocks_cached = 0;  // held by the prefix cache alone (free to take)
  int64_t prefix_queries = 0;     // prompt tokens looked up, ever
  int64_t prefix_hits = 0;        // prompt tokens found, ever
  int64_t num_preemptions = 0;    // ever
};

struct Decision {
  // kCommitFirst: nothing can be planned behind the step in flight.
  enum class Kind : uint8_t { kRun, kWaitUntil, kIdle, kCommitFirst };
  Kind kind = Kind::kIdle;
  TimePoint until;  // kWaitUntil: a batch timeout or a deadline; also earlier when an event comes
};

// Invariants (checked by check_invariants): every block is free, held or cached, never two of them;
// a block's reference count equals the block tables that name it; waiting + running == live
// sequences; a running sequence's table covers its computed tokens. A block may be given on while a
// step in flight still uses it for a sequence that has ended: steps run in their order.
// Threads: confined to the step loop's thread.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();

  // Takes a request. kResourceExhausted when the waiting queue is full: max_waiting_requests bounds
  // those that never ran, preempted ones do not count.
  [[nodiscard]] absl::Status add(Request request, TimePoint now);

  // Ends all sequences of a request with `reason` and `status`; their blocks are free on return.
  // False when it is not known (already finished). What a step in flight gives it is dropped.
  bool cancel(RequestId id, FinishReason reason, const absl::Status& status, TimePoint now);

  // Ends one sequence with kStop: its reader has all it wants. False when it is not known.
  bool finish(RequestId id, int32_t index, TimePoint now);

  // After a step that failed, in place of commit(): it is void, and so are others in flight. Ends
  // the requests that have a running sequence with kError and `status`, and forgets what the blocks
  // held, since the step may have torn it. Who waits waits on. Returns the number of requests
  // ended.
  int64_t fail_step(const absl::Status& status, TimePoint now);

  // Ends everything. Steps in flight are still to be committed, and give nobody anything.
  // Returns the number of requests ended.
  int64_t cancel_all(FinishReason reason, const absl::Status& status, TimePoint now);

  // Ends what is past its deadline, then fills batch(): running decodes first, then prefill chunks,
  // then waiting sequences, within the token budget; preempts when blocks run out. The step is in
  // flight then. Behind one step in flight, if that only decodes, another can be planned: decodes
  // follow tokens that are not known yet, and nobody is preempted. kCommitFirst where blocks run
  // out, or where sampling looks back at tokens (penalties, a limited thought).
  [[nodiscard]] Decision plan(TimePoint now);

  // The step that plan() chose with kRun; valid until the next call that changes anything.
  [[nodiscard]] std::span<const engine::SequenceStep> batch() const;

  // Takes the results of the oldest step in flight: appends tokens, finishes sequences, feeds the
  // prefix cache, calls sinks. Results of sequences that have ended since are dropped.
  void commit(engine::StepOutput output, TimePoint now);

  [[nodiscard]] int32_t num_in_flight() const;  // steps planned and not committed

  // Puts every running sequence back to waiting, its blocks released (self-check and tests). No
  // step is in flight.
  void preempt_all();

  [[nodiscard]] bool idle() const;  // no live sequence
  [[nodiscard]] SchedulerStats stats() const;
  void check_invariants() const;  // R1D_CHECKs

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::scheduler
