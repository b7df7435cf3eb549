// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <thread>

#include <absl/status/status.h>

#include "r1d/base/mutex.h"

namespace r1d::engine {

// Aborts the step in flight on behalf of a watcher that must not wait, since an abort may itself
// take its time: a thread of its own does it, once a step at most, and never outside of one.
// Lifecycle: begin() -> end() for each step, or for steps that follow one another without a pause.
// The destructor waits for an abort under way.
// Threads: begin() and end() by the thread that runs steps, interrupt() by any; `abort` runs on the
// thread of this object.
class StepInterrupt {
 public:
  explicit StepInterrupt(std::function<void()> abort);
  ~StepInterrupt();
  StepInterrupt(const StepInterrupt&) = delete;
  StepInterrupt& operator=(const StepInterrupt&) = delete;

  void begin();
  // Why the step was interrupted, if it was; the abort is over by then.
  [[nodiscard]] absl::Status end();
  // The same for one of several steps, which goes on.
  [[nodiscard]] absl::Status so_far();

  // Nothing without a step in flight; the first reason counts.
  void interrupt(const absl::Status& why);

 private:
  void work();

  const std::function<void()> abort_;
  base::Mutex mu_;
  base::CondVar asked_;  // for the thread: an abort is due, or stop
  base::CondVar done_;   // for end() and so_far()
  bool in_step_ ABSL_GUARDED_BY(mu_) = false;
  bool due_ ABSL_GUARDED_BY(mu_) = false;  // from interrupt() until the abort is over
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace r1d::engine
