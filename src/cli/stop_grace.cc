// SPDX-License-Identifier: Apache-2.0
#include "cli/stop_grace.h"

#include <utility>

namespace r1d::cli {

StopGrace::StopGrace(std::stop_token stop, Duration limit, std::function<void()> expired)
    : limit_(limit),
      expired_(std::move(expired)),
      thread_([this] { watch(); }),
      on_stop_(std::move(stop), [this] {
        const base::MutexLock lock(mu_);
        stopping_ = true;
        changed_.notify_all();
      }) {}

StopGrace::~StopGrace() {
  {
    const base::MutexLock lock(mu_);
    ended_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void StopGrace::watch() {
  {
    const base::MutexLock lock(mu_);
    while (!stopping_ && !ended_) changed_.wait(mu_);
    const TimePoint until = std::chrono::steady_clock::now() + limit_;
    while (!ended_ && std::chrono::steady_clock::now() < until) changed_.wait_until(mu_, until);
    if (ended_) return;
  }
  expired_();
}

}  // namespace r1d::cli
