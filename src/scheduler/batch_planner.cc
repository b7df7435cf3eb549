// SPDX-License-Identifier: Apache-2.0
#include "scheduler/batch_planner.h"

#include <algorithm>

#include "r1d/base/check.h"

namespace r1d::scheduler {

// Not more running sequences than tokens in a step: each can then decode in every step.
BatchPlanner::BatchPlanner(const SchedulerOptions& options, KvBlocks& kv)
    : kv_(kv),
      max_tokens_(options.max_num_batched_tokens),
      max_model_len_(options.max_model_len),
      max_running_(
          static_cast<size_t>(std::min(options.max_batch_size, options.max_num_batched_tokens))) {
  running_.reserve(max_running_);
}

void BatchPlanner::enqueue(Sequence& sequence) {
  sequence.state = Sequence::State::kWaiting;
  waiting_.insert(&sequence);
}

void BatchPlanner::plan_step() {
  budget_ = max_tokens_;
  const int64_t preemptions_before = num_preemptions_;
  schedule_running(/*decodes=*/true);
  schedule_running(/*decodes=*/false);
  // Whoever was preempted would come straight back for the blocks that were just taken from it.
  if (num_preemptions_ == preemptions_before) admit_waiting();
}

bool BatchPlanner::plan_ahead() {
  const bool hangs = std::ranges::any_of(running_, [](const Sequence* sequence) {
    return sequence->num_pending > 0 && engine::looks_back(sequence->sampling);
  });
  if (hangs || blocks_to_step() > kv_.num_available()) return false;
  plan_step();
  return true;
}

// Blocks that plan_step() would give to running sequences.
int32_t BatchPlanner::blocks_to_step() const {
  int32_t blocks = 0;
  int32_t budget = max_tokens_;
  for (const bool decodes : {true, false}) {
    for (const Sequence* sequence : running_) {
      if (sequence->decodes() != decodes || !can_step(*sequence)) continue;
      const int32_t count = std::min(budget, sequence->num_remaining());
      budget -= count;
      blocks += kv_.num_missing(sequence->table, sequence->num_computed + count);
    }
  }
  return blocks;
}

void BatchPlanner::remove(Sequence& sequence) {
  if (sequence.state == Sequence::State::kWaiting) {
    waiting_.erase(&sequence);
  } else if (sequence.state == Sequence::State::kRunning) {
    const auto at = std::ranges::lower_bound(running_, &sequence, RanksEarlier{});
    R1D_CHECK(at != running_.end() && *at == &sequence);
    running_.erase(at);
  }
  sequence.state = Sequence::State::kEnded;
}

void BatchPlanner::preempt_all() {
  while (!running_.empty()) preempt_last();
}

void BatchPlanner::schedule_running(bool decodes) {
  // By index: preemption shortens running_ at its end, behind or at `i`.
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.decodes() != decodes || !can_step(sequence)) continue;
    const int32_t count = std::min(budget_, sequence.num_remaining());
    if (secure_blocks(sequence, count)) schedule(sequence, count);
  }
}

// False: what is pending for the sequence is the last token that it may have.
bool BatchPlanner::can_step(const Sequence& sequence) const {
  if (sequence.num_pending == 0) return true;
  const int32_t num_output = sequence.summary.num_output_tokens + sequence.num_pending;
  return num_output < sequence.sampling.max_tokens &&
         sequence.num_tokens() + sequence.num_pending < max_model_len_;
}

// Makes room for the sequence's next tokens, at the cost of those ranked behind it, the last first.
// False if it was the last itself: then it is back in the waiting set.
bool BatchPlanner::secure_blocks(Sequence& sequence, int32_t count) {
  while (!kv_.grow(sequence.table, sequence.num_computed + count)) {
    const bool is_last = running_.back() == &sequence;
    preempt_last();
    if (is_last) return false;
  }
  return true;
}

void BatchPlanner::preempt_last() {
  Sequence& victim = *running_.back();
  running_.pop_back();
  budget_ += victim.num_scheduled;  // it may have been in this step already
  victim.num_scheduled = 0;
  victim.num_computed = 0;
  kv_.close(victim.table);
  ++victim.summary.num_preemptions;
  ++num_preemptions_;
  enqueue(victim);
}

// In rank order; the first that does not fit ends it, so that no one is passed over for ever.
// NOTE: a waiting sequence never preempts a running one that ranks behind it: throwing computed
// tokens away costs more than the wait for a place, which ends with the first running sequence.
void BatchPlanner::admit_waiting() {
  while (budget_ > 0 && running_.size() < max_running_ && !waiting_.empty()) {
    Sequence& sequence = **waiting_.begin();
    // One block of headroom for each running sequence: block_size steps before the first of them
    // can ask for a block that is not there.
    const auto headroom = static_cast<int32_t>(running_.size());
    if (!kv_.open(sequence.table, sequence.tokens, headroom)) return;
    waiting_.erase(waiting_.begin());
    sequence.state = Sequence::State::kRunning;
    sequence.num_computed = sequence.table.num_known * kv_.block_size();
    running_.insert(std::ranges::upper_bound(running_, &sequence, RanksEarlier{}), &sequence);
    const int32_t count = std::min(budget_, sequence.num_remaining());
    R1D_CHECK(kv_.grow(sequence.table, sequence.num_computed + count));
    schedule(sequence, count);
  }
}

void BatchPlanner::schedule(Sequence& sequence, int32_t count) {
  sequence.num_scheduled = count;
  budget_ -= count;
}

}  // namespace r1d::scheduler
