// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include <absl/status/status.h>

#include "r1d/base/clock.h"
#include "r1d/engine/executor.h"
#include "r1d/scheduler/request.h"
#include "r1d/scheduler/scheduler.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::scheduler {

// The thread that drives the engine: intake, plan, publish, execute, commit or recover. Owns the
// Scheduler. Lifecycle: start() -> submit/cancel from any thread -> drain() -> stop(), also by the
// destructor. Threads: start() and stop() belong to the owner, the rest is thread-safe; sinks are
// called on the loop's own thread.
class StepLoop {
 public:
  // A step that fails ends the requests that ran, with kUnavailable. Where the engine recovers, the
  // others go on; `on_recovery` is called before (true) and after (false), on the loop's thread.
  // Where it does not, or has done so too often (RecoveryBudget), every request ends and `on_fatal`
  // is called, once.
  // `executor`, `metrics` and `clock` outlive the loop.
  StepLoop(const SchedulerOptions& options,
           engine::Executor& executor,
           telemetry::EngineMetrics& metrics,
           const Clock& clock,
           std::function<void(const absl::Status&)> on_fatal,
           std::function<void(bool under_way)> on_recovery = {});
  ~StepLoop();

  void start();

  // kResourceExhausted when the waiting queue is full, kUnavailable when draining or failed. On OK
  // the sink sees exactly one on_finish per sequence.
  [[nodiscard]] absl::Status submit(Request request);

  // Bounds the waiting queue from now on; what waits already stays.
  void set_max_waiting_requests(int32_t limit);

  // Ends a request before the next step; unknown ids are ignored.
  void cancel(RequestId id, FinishReason reason, const absl::Status& status);

  // Ends one sequence of a request before the next step, with kStop: a stop text came. Unknown ones
  // are ignored.
  void finish(RequestId id, int32_t index);

  // Refuses new work, waits until all accepted work is done or `limit` has passed, then cancels the
  // rest (kUnavailable) and returns the number of requests cancelled. Blocks the caller, at the
  // limit until the step in flight has ended. None as soon as alive() has said that the loop stands
  // still: nothing may come of waiting, and stop() would not return either.
  std::optional<int64_t> drain(Duration limit);

  // Ends after the step in flight; what is left then ends with kCancelled and kUnavailable.
  void stop();

  // One look of a watcher, to be repeated at least four times in `patience`: true while the loop
  // moves or is at rest by right (no step in flight, also once the engine has failed), or there was
  // progress within `patience` as the looks saw it.
  [[nodiscard]] bool alive(Duration patience) const;

  [[nodiscard]] SchedulerStats stats() const;  // as of the last plan

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::scheduler
