// SPDX-License-Identifier: Apache-2.0
#include "r1d/scheduler/scheduler.h"

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>
#include <utility>

#include "r1d/base/check.h"
#include "r1d/base/status.h"

#include "scheduler/batch_planner.h"
#include "scheduler/kv_blocks.h"
#include "scheduler/sequence.h"

namespace r1d::scheduler {

class Scheduler::Impl {
 public:
  explicit Impl(const SchedulerOptions& options);

  absl::Status add(Request request, TimePoint now);
  bool cancel(RequestId id, FinishReason reason, const absl::Status& status, TimePoint now);
  bool finish(RequestId id, int32_t index, TimePoint now);
  int64_t fail_step(const absl::Status& status, TimePoint now);
  int64_t cancel_all(FinishReason reason, const absl::Status& status, TimePoint now);
  Decision plan(TimePoint now);
  std::span<const engine::SequenceStep> batch() const { return batch_; }
  void commit(engine::StepOutput output, TimePoint now);
  int32_t num_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  void preempt_all();
  bool idle() const { return requests_.empty(); }
  SchedulerStats stats() const;
  void check_invariants() const;

 private:
  // A sequence's part of a step in flight.
  struct Share {
    Sequence* sequence = nullptr;  // null: it has ended since
    int32_t num_computed = 0;      // after this step
    bool samples = false;
  };
  struct Step {
    std::vector<Share> shares;
    bool only_decodes = true;
  };

  // Sequences end one by one; a request is erased with the last of them, by its caller.
  void end_request(LiveRequest& live, FinishReason, const absl::Status& status, TimePoint now);
  void end_sequence(Sequence& sequence, FinishReason, const absl::Status& status, TimePoint now);
  void erase_if_ended(LiveRequest& live);
  void unpark(LiveRequest& live);

  void end_past_deadline(TimePoint now);
  std::optional<TimePoint> batch_fills_until() const;
  void build_batch(TimePoint now);
  void append_to_batch(Sequence& sequence, int32_t& num_samples);
  void drop_from_flight(const Sequence& sequence);
  void note_started(Sequence& sequence, TimePoint now);

  void check_sequence(const Sequence& sequence) const;

  void take_result(const Share& share, engine::SampledToken result, TimePoint now);
  void take_token(Sequence& sequence, engine::SampledToken token, TimePoint now);

  const SchedulerOptions options_;
  KvBlocks kv_;
  BatchPlanner planner_;
  std::unordered_map<RequestId, LiveRequest> requests_;
  std::set<std::pair<TimePoint, RequestId>> deadlines_;  // of the live requests that have one
  SequenceId next_id_ = 1;
  int32_t num_live_ = 0;    // sequences
  int32_t num_queued_ = 0;  // requests that never ran
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
  std::vector<Step> in_flight_;              // oldest first; two at most
  std::vector<engine::SequenceStep> batch_;  // of the newest
};

Scheduler::Impl::Impl(const SchedulerOptions& options)
    : options_(options),
      kv_(options.num_blocks, options.block_size, options.prefix_cache, BlockHasher::random_key()),
      planner_(options, kv_) {
  R1D_CHECK(options.max_batch_size > 0 && options.max_num_batched_tokens > 0);
  // One sequence alone always fits: preempting all others lets the earliest one go on.
  R1D_CHECK(options.max_model_len > 1);
  R1D_CHECK(int64_t{options.num_blocks} * options.block_size >= options.max_model_len);
  batch_.reserve(planner_.max_running());
}

absl::Status Scheduler::Impl::add(Request request, TimePoint now) {
  if (num_queued_ >= options_.max_waiting_requests) {
    return resource_exhausted("the waiting queue is full: {} requests wait, {} may",
                              num_queued_,
                              options_.max_waiting_requests);
  }
  R1D_CHECK(request.n > 0 && request.sink != nullptr && !request.prompt.empty());
  R1D_CHECK(static_cast<int64_t>(request.prompt.size()) < options_.max_model_len);
  request.arrival = std::min(request.arrival, now);
  const RequestId id = request.id;
  const auto [at, added] = requests_.try_emplace(id);
  R1D_CHECK(added);
  LiveRequest& live = at->second;
  live.request = std::move(request);
  make_sequences(live, next_id_, options_.priority_aging);
  next_id_ += live.sequences.size();
  num_live_ += live.num_live;
  ++num_queued_;
  if (live.request.deadline) deadlines_.emplace(*live.request.deadline, id);
  planner_.enqueue(live.sequences.front());
  if (!kv_.prefix_cache_on()) unpark(live);  // nothing to wait for
  return absl::OkStatus();
}

bool Scheduler::Impl::cancel(RequestId id,
                             FinishReason reason,
                             const absl::Status& status,
                             TimePoint now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return false;
  end_request(found->second, reason, status, now);
  return true;
}

bool Scheduler::Impl::finish(RequestId id, int32_t index, TimePoint now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return false;
  LiveRequest& live = found->second;
  R1D_CHECK(index >= 0 && index < live.request.n);
  Sequence& sequence = live.sequences[static_cast<size_t>(index)];
  if (sequence.state == Sequence::State::kEnded) return false;
  end_sequence(sequence, FinishReason::kStop, absl::OkStatus(), now);
  erase_if_ended(live);
  return true;
}

int64_t Scheduler::Impl::fail_step(const absl::Status& status, TimePoint now) {
  batch_.clear();
  in_flight_.clear();
  int64_t num_ended = 0;
  for (; !planner_.running().empty(); ++num_ended) {
    end_request(*planner_.running().front()->request, FinishReason::kError, status, now);
  }
  kv_.forget_all();
  return num_ended;
}

int64_t Scheduler::Impl::cancel_all(FinishReason reason,
                                    const absl::Status& status,
                                    TimePoint now) {
  batch_.clear();
  int64_t num_ended = 0;
  for (; !requests_.empty(); ++num_ended) {
    end_request(requests_.begin()->second, reason, status, now);
  }
  return num_ended;
}

void Scheduler::Impl::end_request(LiveRequest& live,
                                  FinishReason reason,
                                  const absl::Status& status,
                                  TimePoint now) {
  for (Sequence& sequence : live.sequences) {
    if (sequence.state != Sequence::State::kEnded) end_sequence(sequence, reason, status, now);
  }
  erase_if_ended(live);
}

void Scheduler::Impl::end_sequence(Sequence& sequence,
                                   FinishReason reason,
                                   const absl::Status& status,
                                   TimePoint now) {
  LiveRequest& live = *sequence.request;
  drop_from_flight(sequence);
  planner_.remove(sequence);
  // After a fault the blocks may hold NaNs, which a prefix hit would hand to another request.
  reason == FinishReason::kError ? kv_.discard(sequence.table) : kv_.close(sequence.table);
  sequence.tokens = {};
  --live.num_live;
  --num_live_;
  FinishEvent& summary = sequence.summary;
  summary.reason = reason;
  summary.status = status;
  summary.time = now;
  if (summary.num_output_tokens == 0) summary.first_token = now;
  live.request.sink->on_finish(summary);
  if (summary.index == 0) unpark(live);
}

void Scheduler::Impl::erase_if_ended(LiveRequest& live) {
  if (live.num_live > 0) return;
  if (!live.started) --num_queued_;
  if (live.request.deadline) deadlines_.erase({*live.request.deadline, live.request.id});
  requests_.erase(RequestId{live.request.id});
}

void Scheduler::Impl::unpark(LiveRequest& live) {
  for (Sequence& sequence : live.sequences) {
    if (sequence.state == Sequence::State::kParked) planner_.enqueue(sequence);
  }
}

void Scheduler::Impl::drop_from_flight(const Sequence& sequence) {
  for (Step& step : in_flight_) {
    for (Share& share : step.shares) {
      if (share.sequence == &sequence) share.sequence = nullptr;
    }
  }
}

Decision Scheduler::Impl::plan(TimePoint now) {
  constexpr Decision kCommitFirst{.kind = Decision::Kind::kCommitFirst, .until = {}};
  R1D_CHECK(in_flight_.size() < 2);
  batch_.clear();
  end_past_deadline(now);
  if (idle()) return {.kind = Decision::Kind::kIdle, .until = {}};
  if (!in_flight_.empty()) {
    if (!in_flight_.front().only_decodes || !planner_.plan_ahead()) return kCommitFirst;
    build_batch(now);
    return batch_.empty() ? kCommitFirst : Decision{.kind = Decision::Kind::kRun, .until = {}};
  }
  if (const auto until = batch_fills_until(); until && *until > now) {
    const TimePoint next =
        deadlines_.empty() ? *until : std::min(*until, deadlines_.begin()->first);
    return {.kind = Decision::Kind::kWaitUntil, .until = next};
  }
  planner_.plan_step();
  build_batch(now);
  R1D_CHECK(!batch_.empty());
  return {.kind = Decision::Kind::kRun, .until = {}};
}

void Scheduler::Impl::end_past_deadline(TimePoint now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    LiveRequest& live = requests_.at(deadlines_.begin()->second);
    const double seconds = seconds_between(live.request.arrival, *live.request.deadline);
    end_request(live,
                FinishReason::kDeadline,
                deadline_exceeded("the request's deadline, {:.3f} s after its arrival, has passed",
                                  seconds),
                now);
  }
}

// Until when an idle engine waits for its first batch to fill; none: it need not.
std::optional<TimePoint> Scheduler::Impl::batch_fills_until() const {
  const BatchPlanner::WaitingSet& waiting = planner_.waiting();
  if (options_.batch_timeout <= Duration::zero() || !planner_.running().empty() ||
      waiting.size() >= planner_.max_running()) {
    return std::nullopt;
  }
  auto first = TimePoint::max();
  for (const Sequence* sequence : waiting) {     // fewer than a batch
    if (sequence->started) return std::nullopt;  // preempted: it has waited before
    first = std::min(first, sequence->summary.arrival);
  }
  return first + options_.batch_timeout;
}

// Decodes before prefill chunks, each in rank order. Puts the step, if there is one, in flight.
void Scheduler::Impl::build_batch(TimePoint now) {
  Step step;
  step.shares.reserve(planner_.running().size());
  int32_t num_samples = 0;
  for (const bool decodes : {true, false}) {
    for (Sequence* sequence : planner_.running()) {
      if (sequence->num_scheduled == 0 || sequence->decodes() != decodes) continue;
      if (!sequence->started) note_started(*sequence, now);
      step.only_decodes = step.only_decodes && decodes;
      step.shares.push_back({.sequence = sequence,
                             .num_computed = sequence->num_computed + sequence->num_scheduled,
                             .samples = sequence->samples()});
      append_to_batch(*sequence, num_samples);
    }
  }
  for (const Share& share : step.shares) {
    share.sequence->num_computed = share.num_computed;
    share.sequence->num_scheduled = 0;
    share.sequence->num_pending += share.samples ? 1 : 0;
  }
  if (!step.shares.empty()) in_flight_.push_back(std::move(step));
}

void Scheduler::Impl::append_to_batch(Sequence& sequence, int32_t& num_samples) {
  const bool follows = sequence.num_pending > 0;
  const bool first_token = sequence.summary.num_output_tokens == 0 && !follows;
  batch_.push_back({
      .sequence = sequence.id,
      .tokens = sequence.tokens,
      .num_prompt_tokens = sequence.summary.num_prompt_tokens,
      .start = sequence.num_computed,
      .count = sequence.num_scheduled,
      .block_table = sequence.table.blocks,
      .sampling = sequence.samples() ? &sequence.sampling : nullptr,
      .capture_logits =
          sequence.samples() && first_token && sequence.request->request.capture_logits,
      .follows = follows ? sequence.sample_row : -1,
  });
  if (sequence.samples()) sequence.sample_row = num_samples++;
}

void Scheduler::Impl::note_started(Sequence& sequence, TimePoint now) {
  LiveRequest& live = *sequence.request;
  if (!std::exchange(live.started, true)) --num_queued_;
  sequence.started = true;
  sequence.summary.first_scheduled = now;
  sequence.summary.num_cached_tokens = sequence.num_computed;
  prefix_hits_ += sequence.num_computed;
  if (kv_.prefix_cache_on()) prefix_queries_ += sequence.summary.num_prompt_tokens;
  live.request.sink->on_start(sequence.summary.index, now);
}

void Scheduler::Impl::commit(engine::StepOutput output, TimePoint now) {
  R1D_CHECK(!in_flight_.empty() && output.tokens.size() == in_flight_.front().shares.size());
  batch_.clear();  // its spans end here
  const Step step = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  for (size_t i = 0; i < step.shares.size(); ++i) {
    const Share& share = step.shares[i];
    if (share.sequence == nullptr) continue;
    LiveRequest& live = *share.sequence->request;
    share.sequence->summary.batch_size = static_cast<int32_t>(step.shares.size());
    take_result(share, std::move(output.tokens[i]), now);
    erase_if_ended(live);
  }
}

void Scheduler::Impl::take_result(const Share& share, engine::SampledToken result, TimePoint now) {
  Sequence& sequence = *share.sequence;
  if (share.samples) --sequence.num_pending;
  if (share.samples && !result.status.ok()) {
    end_sequence(sequence, FinishReason::kError, result.status, now);
    return;
  }
  kv_.record(sequence.table, sequence.tokens, share.num_computed);
  if (share.samples) take_token(sequence, std::move(result), now);
}

void Scheduler::Impl::take_token(Sequence& sequence, engine::SampledToken token, TimePoint now) {
  FinishEvent& summary = sequence.summary;
  LiveRequest& live = *sequence.request;
  if (summary.index == 0) unpark(live);  // the prompt is in the cache
  const std::vector<TokenId>& stops = sequence.sampling.stop_token_ids;
  if (std::ranges::find(stops, token.token) != stops.end()) {
    summary.stop_token = token.token;
    end_sequence(sequence, FinishReason::kStop, absl::OkStatus(), now);
    return;
  }
  sequence.tokens.push_back(token.token);
  if (++summary.num_output_tokens == 1) summary.first_token = now;
  live.request.sink->on_token({.index = summary.index, .token = std::move(token), .time = now});
  if (summary.num_output_tokens >= sequence.sampling.max_tokens ||
      sequence.num_tokens() >= options_.max_model_len) {
    end_sequence(sequence, FinishReason::kLength, absl::OkStatus(), now);
  }
}

void Scheduler::Impl::preempt_all() {
  R1D_CHECK(in_flight_.empty());
  planner_.preempt_all();
}

SchedulerStats Scheduler::Impl::stats() const {
  const auto num_running = static_cast<int32_t>(planner_.running().size());
  return {
      .num_waiting = num_live_ - num_running,
      .num_queued_requests = num_queued_,
      .num_running = num_running,
      .num_blocks = kv_.allocator().num_blocks(),
      .num_blocks_used = kv_.allocator().num_held(),
      .num_blocks_cached = kv_.allocator().num_cached(),
      .prefix_queries = prefix_queries_,
      .prefix_hits = prefix_hits_,
      .num_preemptions = planner_.num_preemptions(),
  };
}

void Scheduler::Impl::check_sequence(const Sequence& sequence) const {
  const auto num_slots = static_cast<int64_t>(sequence.table.blocks.size()) * kv_.block_size();
  if (sequence.state == Sequence::State::kRunning) {
    R1D_CHECK(num_slots >= sequence.num_computed && sequence.num_scheduled == 0);
    R1D_CHECK(sequence.num_pending >= 0 && sequence.num_pending <= num_in_flight());
  } else {
    R1D_CHECK(num_slots == 0 && sequence.num_scheduled == 0);
    R1D_CHECK(sequence.num_pending == 0 || sequence.state == Sequence::State::kEnded);
    R1D_CHECK(sequence.num_computed == 0 || sequence.state == Sequence::State::kEnded);
  }
}

void Scheduler::Impl::check_invariants() const {
  std::vector<const BlockTable*> tables;
  std::array<size_t, 4> in_state{};
  int32_t num_queued = 0;
  for (const auto& [id, live] : requests_) {
    num_queued += live.started ? 0 : 1;
    R1D_CHECK(live.num_live > 0);
    for (const Sequence& sequence : live.sequences) {
      ++in_state[static_cast<size_t>(sequence.state)];
      check_sequence(sequence);
      tables.push_back(&sequence.table);
    }
  }
  R1D_CHECK(num_queued == num_queued_ && num_queued <= options_.max_waiting_requests);
  R1D_CHECK(in_state[static_cast<size_t>(Sequence::State::kWaiting)] == planner_.waiting().size());
  R1D_CHECK(in_state[static_cast<size_t>(Sequence::State::kRunning)] == planner_.running().size());
  R1D_CHECK(planner_.running().size() <= planner_.max_running());
  R1D_CHECK(std::ranges::is_sorted(planner_.running(), RanksEarlier{}));
  R1D_CHECK(static_cast<int64_t>(in_state[0] + in_state[1] + in_state[2]) == num_live_);
  kv_.check_invariants(tables);
}

Scheduler::Scheduler(const SchedulerOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Scheduler::~Scheduler() = default;

absl::Status Scheduler::add(Request request, TimePoint now) {
  return impl_->add(std::move(request), now);
}

bool Scheduler::cancel(RequestId id,
                       FinishReason reason,
                       const absl::Status& status,
                       TimePoint now) {
  return impl_->cancel(id, reason, status, now);
}

bool Scheduler::finish(RequestId id, int32_t index, TimePoint now) {
  return impl_->finish(id, index, now);
}

int64_t Scheduler::fail_step(const absl::Status& status, TimePoint now) {
  return impl_->fail_step(status, now);
}

int64_t Scheduler::cancel_all(FinishReason reason, const absl::Status& status, TimePoint now) {
  return impl_->cancel_all(reason, status, now);
}

Decision Scheduler::plan(TimePoint now) {
  return impl_->plan(now);
}

std::span<const engine::SequenceStep> Scheduler::batch() const {
  return impl_->batch();
}

void Scheduler::commit(engine::StepOutput output, TimePoint now) {
  impl_->commit(std::move(output), now);
}

int32_t Scheduler::num_in_flight() const {
  return impl_->num_in_flight();
}

void Scheduler::preempt_all() {
  impl_->preempt_all();
}

bool Scheduler::idle() const {
  return impl_->idle();
}

SchedulerStats Scheduler::stats() const {
  return impl_->stats();
}

void Scheduler::check_invariants() const {
  impl_->check_invariants();
}

}  // namespace r1d::scheduler
