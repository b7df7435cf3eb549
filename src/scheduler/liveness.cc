// SPDX-License-Identifier: Apache-2.0
#include "scheduler/liveness.h"

#include <utility>

namespace r1d::scheduler {

bool Liveness::alive(uint64_t progress, TimePoint now, Duration patience) {
  const uint64_t turn = turn_.load(std::memory_order_acquire);
  const bool at_work = (turn & 1U) != 0;
  base::MutexLock lock(mu_);
  const bool new_turn = std::exchange(seen_turn_, turn) != turn;
  const bool new_progress = std::exchange(seen_progress_, progress) != progress;
  if (!at_work || new_turn || new_progress) {
    last_movement_ = now;
    return true;
  }
  return now - last_movement_ <= patience;
}

}  // namespace r1d::scheduler
