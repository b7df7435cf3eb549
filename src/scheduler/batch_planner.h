// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "r1d/scheduler/scheduler.h"

#include "scheduler/kv_blocks.h"
#include "scheduler/sequence.h"

namespace r1d::scheduler {

// Chooses who runs in the next step and with how many tokens, and preempts when blocks run out.
// Holds the waiting and the running set, both in rank order; owns no sequence.
// Threads: confined to the scheduler thread.
// Invariants: a running sequence's table covers its computed and scheduled tokens; a waiting one's
// is empty; the earliest-ranked running sequence is in every step, so the whole always moves on
// (but one whose pending token is its last is not in a step planned ahead).
class BatchPlanner {
 public:
  using WaitingSet = std::set<Sequence*, RanksEarlier>;

  // `kv` outlives the planner.
  BatchPlanner(const SchedulerOptions& options, KvBlocks& kv);

  // parked or new -> waiting.
  void enqueue(Sequence& sequence);

  // Sets num_scheduled of each running sequence for one step; on return at least one is not 0, if
  // any sequence waited or ran and none has a token pending.
  void plan_step();

  // The same behind a step in flight, but preempts nobody: what that step ends may make room.
  // False, and nothing planned, where blocks run out, and where a sequence's next step hangs on its
  // pending token: it would otherwise sit out every second step.
  [[nodiscard]] bool plan_ahead();

  // waiting, running or parked -> ended. The blocks are the caller's to close.
  void remove(Sequence& sequence);

  // running -> waiting, everywhere.
  void preempt_all();

  [[nodiscard]] const WaitingSet& waiting() const { return waiting_; }
  [[nodiscard]] const std::vector<Sequence*>& running() const { return running_; }
  [[nodiscard]] size_t max_running() const { return max_running_; }
  [[nodiscard]] int64_t num_preemptions() const { return num_preemptions_; }

 private:
  [[nodiscard]] int32_t blocks_to_step() const;
  [[nodiscard]] bool can_step(const Sequence& sequence) const;
  void schedule_running(bool decodes);
  [[nodiscard]] bool secure_blocks(Sequence& sequence, int32_t count);
  void preempt_last();
  void admit_waiting();
  void schedule(Sequence& sequence, int32_t count);

  KvBlocks& kv_;
  const int32_t max_tokens_;
  const int32_t max_model_len_;
  const size_t max_running_;
  WaitingSet waiting_;
  std::vector<Sequence*> running_;
  int32_t budget_ = 0;  // tokens left in the step being planned
  int64_t num_preemptions_ = 0;
};

}  // namespace r1d::scheduler
