// SPDX-License-Identifier: Apache-2.0
#include "engine/step_interrupt.h"

#include <utility>

#include "r1d/base/check.h"

namespace r1d::engine {

StepInterrupt::StepInterrupt(std::function<void()> abort)
    : abort_(std::move(abort)), thread_([this] { work(); }) {}

StepInterrupt::~StepInterrupt() {
  {
    const base::MutexLock lock(mu_);
    stop_ = true;
  }
  asked_.notify_one();
  thread_.join();
}

void StepInterrupt::begin() {
  const base::MutexLock lock(mu_);
  R1D_CHECK(!in_step_);
  in_step_ = true;
  why_ = absl::OkStatus();
}

absl::Status StepInterrupt::so_far() {
  const base::MutexLock lock(mu_);
  while (due_) done_.wait(mu_);
  return why_;
}

absl::Status StepInterrupt::end() {
  const base::MutexLock lock(mu_);
  in_step_ = false;
  while (due_) done_.wait(mu_);
  return why_;
}

void StepInterrupt::interrupt(const absl::Status& why) {
  const base::MutexLock lock(mu_);
  if (!in_step_ || !why_.ok()) return;
  why_ = why;
  due_ = true;
  asked_.notify_one();
}

void StepInterrupt::work() {
  while (true) {
    {
      const base::MutexLock lock(mu_);
      while (!due_ && !stop_) asked_.wait(mu_);
      if (!due_) return;
    }
    abort_();
    const base::MutexLock lock(mu_);
    due_ = false;
    done_.notify_one();
  }
}

}  // namespace r1d::engine
