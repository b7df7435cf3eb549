// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

#include "r1d/base/clock.h"

namespace r1d::scheduler {

// How often an engine may recover before it counts as lost. What comes back within minutes is no
// passing fault: each time the running requests are lost, while a supervisor could start the
// process on another host, or on this one with its devices reset. Threads: externally locked.
class RecoveryBudget {
 public:
  static constexpr size_t kMost = 3;
  static constexpr std::chrono::minutes kWindow{10};

  // Whether one more is allowed now; it is counted if so.
  [[nodiscard]] bool take(TimePoint now) {
    TimePoint& oldest = last_[next_];
    if (oldest != TimePoint{} && now - oldest < kWindow) return false;
    oldest = now;
    next_ = (next_ + 1) % kMost;
    return true;
  }

 private:
  std::array<TimePoint, kMost> last_{};  // a ring; the one at next_ is the oldest
  size_t next_ = 0;
};

}  // namespace r1d::scheduler
