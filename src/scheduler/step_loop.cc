// SPDX-License-Identifier: Apache-2.0
#include "r1d/scheduler/step_loop.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"

#include "scheduler/liveness.h"
#include "scheduler/metered_sink.h"
#include "scheduler/recovery_budget.h"

namespace r1d::scheduler {
namespace {

// Now plus `wait` on the machine's clock, which conditions wait by. (The loop's own clock may be a
// test's.) Bounded, so that the sum cannot overflow.
TimePoint wake_time(Duration wait) {
  constexpr Duration kLongest = std::chrono::hours(24);
  return std::chrono::steady_clock::now() + std::clamp(wait, Duration::zero(), kLongest);
}

// submit() bounds the queue, as it must answer at once, and its bound may change.
SchedulerOptions without_queue_bound(SchedulerOptions options) {
  options.max_waiting_requests = std::numeric_limits<int32_t>::max();
  return options;
}

}  // namespace

class StepLoop::Impl {
 public:
  Impl(const SchedulerOptions& options,
       engine::Executor& executor,
       telemetry::EngineMetrics& metrics,
       const Clock& clock,
       std::function<void(const absl::Status&)> on_fatal,
       std::function<void(bool)> on_recovery)
      : executor_(executor),
        metrics_(metrics),
        clock_(clock),
        on_fatal_(std::move(on_fatal)),
        on_recovery_(std::move(on_recovery)),
        scheduler_(without_queue_bound(options)),
        stats_(scheduler_.stats()),
        max_waiting_(options.max_waiting_requests) {}

  void start();
  absl::Status submit(Request request);
  void set_max_waiting_requests(int32_t limit);
  void cancel(RequestId id, FinishReason reason, const absl::Status& status);
  void finish(RequestId id, int32_t index);
  std::optional<int64_t> drain(Duration limit);
  void stop();
  bool alive(Duration patience);
  SchedulerStats stats();

 private:
  struct Cancellation {
    FinishReason reason;
    absl::Status status;
  };
  // What other threads hand to the loop between two steps.
  struct Intake {
    std::vector<Request> requests;
    std::unordered_map<RequestId, Cancellation> cancellations;  // the first for an id counts
    std::vector<std::pair<RequestId, int32_t>> finished;        // sequences read to their end
    bool cancel_all = false;                                    // the drain limit has passed
    [[nodiscard]] bool empty() const {
      return requests.empty() && cancellations.empty() && finished.empty() && !cancel_all;
    }
  };

  // A step on its way, as metrics and log will tell of it.
  struct Started {
    TimePoint begin;
    int32_t num_sequences = 0;
    int32_t num_prefill_tokens = 0;
    int32_t num_decode_tokens = 0;
  };

  void run();
  [[nodiscard]] bool stopping();
  [[nodiscard]] bool step();
  [[nodiscard]] absl::Status start_step(TimePoint now);
  [[nodiscard]] absl::Status finish_step();
  void take_in();
  void publish();
  void publish_step(const Started& step, double seconds);
  void wait_for_event(const Decision& decision);
  [[nodiscard]] bool recover(const absl::Status& failure);
  [[nodiscard]] absl::Status try_to_recover(const absl::Status& failure);
  void fail(const absl::Status& status);
  void end_all(FinishReason reason, const absl::Status& status);
  [[nodiscard]] bool settled() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  engine::Executor& executor_;
  telemetry::EngineMetrics& metrics_;
  const Clock& clock_;
  const std::function<void(const absl::Status&)> on_fatal_;
  const std::function<void(bool)> on_recovery_;
  const std::shared_ptr<spdlog::logger> log_ = base::make_logger("scheduler");
  Liveness liveness_;
  RecoveryBudget recoveries_;    // the loop's thread alone
  Scheduler scheduler_;          // the loop's thread alone
  std::deque<Started> started_;  // the steps in flight, oldest first; the loop's thread alone
  TimePoint last_end_;           // of the step before; the loop's thread alone

  base::Mutex mu_;
  base::CondVar event_;    // for the loop: intake or stop
  base::CondVar settled_;  // for drain(): nothing is left to do, or nothing moves
  Intake intake_ ABSL_GUARDED_BY(mu_);
  SchedulerStats stats_ ABSL_GUARDED_BY(mu_);
  int32_t max_waiting_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;  // the scheduler holds, or is being given, requests
  int64_t num_cut_off_ ABSL_GUARDED_BY(mu_) = 0;  // requests cancelled at the drain limit
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);     // not OK: why there is no new work
  bool failed_ ABSL_GUARDED_BY(mu_) = false;
  bool stuck_ ABSL_GUARDED_BY(mu_) = false;  // as the last look saw it
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // start() and stop() alone
};

void StepLoop::Impl::run() {
  const absl::Status thrown = base::without_exceptions([this] {
    while (!stopping() && step()) {
    }
    // What is on its way ends before what it uses goes; nobody wants its tokens.
    for (; !started_.empty(); started_.pop_front()) static_cast<void>(executor_.finish());
    end_all(FinishReason::kCancelled, unavailable("the server is shutting down"));
    return absl::OkStatus();
  });
  if (!thrown.ok()) fail(thrown);
  liveness_.rest();
}

// One turn. False when the engine is lost.
bool StepLoop::Impl::step() {
  liveness_.begin_turn();
  take_in();
  const TimePoint now = clock_.now();
  const Decision decision = scheduler_.plan(now);
  publish();
  if (decision.kind == Decision::Kind::kRun) {
    const absl::Status started = start_step(now);
    if (!started.ok()) return recover(started);
    // The device is to have the next step before it is done with this one.
    if (scheduler_.num_in_flight() <= executor_.steps_ahead()) return true;
  } else if (started_.empty()) {
    wait_for_event(decision);
    return true;
  }
  const absl::Status finished = finish_step();
  return finished.ok() || recover(finished);
}

absl::Status StepLoop::Impl::start_step(TimePoint now) {
  Started step{.begin = now};
  for (const engine::SequenceStep& sequence : scheduler_.batch()) {
    const bool decodes = sequence.start >= sequence.num_prompt_tokens && sequence.count == 1;
    (decodes ? step.num_decode_tokens : step.num_prefill_tokens) += sequence.count;
  }
  step.num_sequences = static_cast<int32_t>(scheduler_.batch().size());
  started_.push_back(step);
  metrics_.step_begins();
  return executor_.start(scheduler_.batch());
}

// Waits for the oldest step in flight; its tokens go out.
absl::Status StepLoop::Impl::finish_step() {
  absl::StatusOr<engine::StepOutput> output = executor_.finish();
  if (!output.ok()) return output.status();
  const Started step = started_.front();
  started_.pop_front();
  const TimePoint end = clock_.now();
  // One that was started behind another begins when that one ends.
  publish_step(step, seconds_between(std::max(step.begin, std::exchange(last_end_, end)), end));
  scheduler_.commit(*std::move(output), end);
  return absl::OkStatus();
}

bool StepLoop::Impl::stopping() {
  base::MutexLock lock(mu_);
  return stop_;
}

void StepLoop::Impl::take_in() {
  Intake taken;
  {
    base::MutexLock lock(mu_);
    taken = std::exchange(intake_, {});
    // Counted as waiting from here on, so that submit() sees each request exactly once.
    stats_.num_queued_requests += static_cast<int32_t>(taken.requests.size());
    busy_ = busy_ || !taken.requests.empty();
  }
  const TimePoint now = clock_.now();
  for (Request& request : taken.requests) {
    base::log_event(*log_,
                    base::LogLevel::debug,
                    "request enters the queue",
                    {{"request", request.id}, {"waited_ms", base::log_ms(now - request.arrival)}},
                    request.trace_id);
    request.sink = std::make_shared<MeteredSink>(request, metrics_);
    R1D_CHECK(scheduler_.add(std::move(request), now).ok());  // it has no bound
  }
  for (const auto& [id, index] : taken.finished) scheduler_.finish(id, index, now);
  for (const auto& [id, cancellation] : taken.cancellations) {
    scheduler_.cancel(id, cancellation.reason, cancellation.status, now);
  }
  if (taken.cancel_all) {
    const int64_t num_cancelled = scheduler_.cancel_all(
        FinishReason::kCancelled,
        unavailable("the server is shutting down; the drain limit has passed"),
        now);
    base::MutexLock lock(mu_);
    num_cut_off_ += num_cancelled;
  }
}

// Shows other threads where the scheduler stands. Once a turn, after plan(): what the step in
// flight took from the queue then makes room for submit() at once.
void StepLoop::Impl::publish() {
  const SchedulerStats stats = scheduler_.stats();
  metrics_.gauges({.waiting = stats.num_waiting,
                   .running = stats.num_running,
                   .blocks_total = stats.num_blocks,
                   .blocks_used = stats.num_blocks_used,
                   .blocks_cached = stats.num_blocks_cached,
                   .prefix_queries = stats.prefix_queries,
                   .prefix_hits = stats.prefix_hits,
                   .preemptions = stats.num_preemptions});
  base::MutexLock lock(mu_);
  stats_ = stats;
  busy_ = !scheduler_.idle();
  if (settled()) settled_.notify_all();
}

void StepLoop::Impl::publish_step(const Started& step, double seconds) {
  metrics_.step(step.num_sequences, step.num_prefill_tokens, step.num_decode_tokens, seconds);
  base::log_event(*log_,
                  base::LogLevel::trace,
                  "step",
                  {{"batch_size", step.num_sequences},
                   {"prefill_tokens", step.num_prefill_tokens},
                   {"decode_tokens", step.num_decode_tokens},
                   {"step_ms", base::log_ms(seconds)}});
}

// Waits for intake, stop, or the time that the scheduler named.
void StepLoop::Impl::wait_for_event(const Decision& decision) {
  const bool timed = decision.kind == Decision::Kind::kWaitUntil;
  const TimePoint wake = timed ? wake_time(decision.until - clock_.now()) : TimePoint::max();
  liveness_.rest();
  base::MutexLock lock(mu_);
  while (intake_.empty() && !stop_) {
    if (!timed) {
      event_.wait(mu_);
    } else if (std::chrono::steady_clock::now() < wake) {
      event_.wait_until(mu_, wake);
    } else {
      return;
    }
  }
}

// False when the engine is lost.
bool StepLoop::Impl::recover(const absl::Status& failure) {
  metrics_.step_failed();
  started_.clear();
  const absl::Status recovered = try_to_recover(failure);
  if (!recovered.ok()) fail(recovered);
  return recovered.ok();
}

// What ran is lost: nobody knows how far the ranks came. What waits needs nothing but its tokens.
absl::Status StepLoop::Impl::try_to_recover(const absl::Status& failure) {
  const std::optional<engine::RecoveryCause> cause = engine::recovery_cause(failure);
  if (!cause.has_value()) return failure;
  const TimePoint begin = clock_.now();
  const std::string reason = message_of(failure);
  if (!recoveries_.take(begin)) {
    return unavailable("{} (the engine has recovered {} times in {} minutes)",
                       reason,
                       RecoveryBudget::kMost,
                       RecoveryBudget::kWindow.count());
  }
  if (on_recovery_) on_recovery_(true);
  const int64_t num_ended = scheduler_.fail_step(unavailable("the step failed: {}", reason), begin);
  const char* const name = engine::recovery_cause_name(*cause);
  base::log_event(*log_,
                  base::LogLevel::err,
                  "a step failed, its requests end, the engine recovers",
                  {{"cause", name}, {"error", reason}, {"requests_ended", num_ended}});
  liveness_.begin_turn();  // this has a patience of its own
  const absl::Status recovered = executor_.recover();
  if (!recovered.ok()) {
    return unavailable("{}; it does not recover: {}", reason, message_of(recovered));
  }
  metrics_.recovered(name);
  base::log_event(*log_,
                  base::LogLevel::warn,
                  "the engine has recovered",
                  {{"cause", name},
                   {"recovery_ms", base::log_ms(clock_.now() - begin)},
                   {"sequences_waiting", scheduler_.stats().num_waiting}});
  if (on_recovery_) on_recovery_(false);
  return absl::OkStatus();
}

// The engine is lost, which no request can cure: everything ends, nothing new comes in.
void StepLoop::Impl::fail(const absl::Status& status) {
  log_->error("the engine failed, every request ends: {}", status.ToString());
  const absl::Status lost = unavailable("the engine failed: {}", message_of(status));
  {
    base::MutexLock lock(mu_);
    failed_ = true;
    refusal_ = lost;
  }
  end_all(FinishReason::kError, lost);
  on_fatal_(status);
}

// Ends what the scheduler has (this also voids a step that failed), then what is still on its way
// to it. New work is refused by now.
void StepLoop::Impl::end_all(FinishReason reason, const absl::Status& status) {
  scheduler_.cancel_all(reason, status, clock_.now());
  take_in();
  scheduler_.cancel_all(reason, status, clock_.now());
  publish();
}

void StepLoop::Impl::start() {
  R1D_CHECK(!thread_.joinable());
  thread_ = std::thread([this] { run(); });
}

absl::Status StepLoop::Impl::submit(Request request) {
  base::MutexLock lock(mu_);
  if (!refusal_.ok()) return refusal_;
  const int64_t num_waiting =
      static_cast<int64_t>(intake_.requests.size()) + stats_.num_queued_requests;
  if (num_waiting >= max_waiting_) {
    metrics_.refused();
    return resource_exhausted(
        "the waiting queue is full: {} requests wait, {} may", num_waiting, max_waiting_);
  }
  intake_.requests.push_back(std::move(request));
  event_.notify_one();
  return absl::OkStatus();
}

void StepLoop::Impl::set_max_waiting_requests(int32_t limit) {
  base::MutexLock lock(mu_);
  max_waiting_ = limit;
}

void StepLoop::Impl::cancel(RequestId id, FinishReason reason, const absl::Status& status) {
  base::MutexLock lock(mu_);
  if (failed_ || stop_) return;  // everything ends anyway
  intake_.cancellations.try_emplace(id, Cancellation{reason, status});
  event_.notify_one();
}

void StepLoop::Impl::finish(RequestId id, int32_t index) {
  base::MutexLock lock(mu_);
  if (failed_ || stop_) return;
  intake_.finished.emplace_back(id, index);
  event_.notify_one();
}

std::optional<int64_t> StepLoop::Impl::drain(Duration limit) {
  const TimePoint give_up = wake_time(limit);
  base::MutexLock lock(mu_);
  if (refusal_.ok()) refusal_ = unavailable("the server is draining; send the request elsewhere");
  while (!settled() && !stuck_ && std::chrono::steady_clock::now() < give_up)
    settled_.wait_until(mu_, give_up);
  if (settled()) return 0;
  intake_.cancel_all = true;
  event_.notify_one();
  while (!settled() && !stuck_) settled_.wait(mu_);
  if (!settled()) return std::nullopt;
  return num_cut_off_;
}

void StepLoop::Impl::stop() {
  {
    base::MutexLock lock(mu_);
    stop_ = true;
    if (refusal_.ok()) refusal_ = unavailable("the server is shutting down");
    event_.notify_one();
  }
  if (!thread_.joinable())
    thread_ = std::thread([this] { run(); });  // ends what came before start()
  thread_.join();
}

bool StepLoop::Impl::alive(Duration patience) {
  const bool moves = liveness_.alive(executor_.progress(), clock_.now(), patience);
  base::MutexLock lock(mu_);
  stuck_ = !moves;
  if (stuck_) settled_.notify_all();
  return moves;
}

SchedulerStats StepLoop::Impl::stats() {
  base::MutexLock lock(mu_);
  return stats_;
}

bool StepLoop::Impl::settled() const {
  return !busy_ && intake_.requests.empty();
}

StepLoop::StepLoop(const SchedulerOptions& options,
                   engine::Executor& executor,
                   telemetry::EngineMetrics& metrics,
                   const Clock& clock,
                   std::function<void(const absl::Status&)> on_fatal,
                   std::function<void(bool)> on_recovery)
    : impl_(std::make_unique<Impl>(
          options, executor, metrics, clock, std::move(on_fatal), std::move(on_recovery))) {}

StepLoop::~StepLoop() {
  impl_->stop();
}

void StepLoop::start() {
  impl_->start();
}

absl::Status StepLoop::submit(Request request) {
  return impl_->submit(std::move(request));
}

void StepLoop::set_max_waiting_requests(int32_t limit) {
  impl_->set_max_waiting_requests(limit);
}

void StepLoop::cancel(RequestId id, FinishReason reason, const absl::Status& status) {
  impl_->cancel(id, reason, status);
}

void StepLoop::finish(RequestId id, int32_t index) {
  impl_->finish(id, index);
}

std::optional<int64_t> StepLoop::drain(Duration limit) {
  return impl_->drain(limit);
}

void StepLoop::stop() {
  impl_->stop();
}

bool StepLoop::alive(Duration patience) const {
  return impl_->alive(patience);
}

SchedulerStats StepLoop::stats() const {
  return impl_->stats();
}

}  // namespace r1d::scheduler
