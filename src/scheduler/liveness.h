// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::scheduler {

// Whether a loop moves, as seen by looks at regular intervals: it stands still when it was at work
// in the same turn with the same progress for as long as the looks' patience. A look counts for no
// more than a quarter of that, so that a process that was itself stopped (SIGSTOP, a machine put to
// sleep) is not taken for a stuck one when it wakes. The loop pays one atomic store a turn and
// reads no clock.
// Threads: begin_turn() and rest() by the loop's thread, alive() by any.
class Liveness {
 public:
  void begin_turn() { turn_.store((turn() | 1U) + 2U, std::memory_order_release); }

  // Before the loop waits for an event: standing still is right until the next begin_turn().
  void rest() { turn_.store((turn() + 1U) & ~uint64_t{1}, std::memory_order_release); }

  // One look. `progress`: what moves within a turn. Look at least four times in `patience`.
  [[nodiscard]] bool alive(uint64_t progress, TimePoint now, Duration patience);

 private:
  [[nodiscard]] uint64_t turn() const { return turn_.load(std::memory_order_relaxed); }

  std::atomic<uint64_t> turn_{0};  // grows; odd while the loop is at work
  base::Mutex mu_;
  uint64_t seen_turn_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t seen_progress_ ABSL_GUARDED_BY(mu_) = 0;
  TimePoint last_look_ ABSL_GUARDED_BY(mu_);
  Duration still_ ABSL_GUARDED_BY(mu_){};  // seen without movement
};

}  // namespace r1d::scheduler
