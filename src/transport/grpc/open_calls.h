// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::transport {

// Counts calls that have not ended, so that a shutdown waits for them and no longer. Thread-safe.
class OpenCalls {
 public:
  void add() {
    const base::MutexLock lock(mu_);
    ++count_;
  }
  void remove() {
    const base::MutexLock lock(mu_);
    if (--count_ == 0) none_.notify_all();
  }
  // Returns when there is none, or at `deadline` of the machine's clock.
  void wait_for_none(TimePoint deadline) {
    const base::MutexLock lock(mu_);
    while (count_ > 0 && std::chrono::steady_clock::now() < deadline) {
      none_.wait_until(mu_, deadline);
    }
  }

 private:
  base::Mutex mu_;
  base::CondVar none_;
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace r1d::transport
