// SPDX-License-Identifier: Apache-2.0
#include "scheduler/liveness.h"

#include <algorithm>
#include <utility>

namespace r1d::scheduler {

bool Liveness::alive(uint64_t progress, TimePoint now, Duration patience) {
  const uint64_t turn = turn_.load(std::memory_order_acquire);
  const bool at_work = (turn & 1U) != 0;
  base::MutexLock lock(mu_);
  const bool new_turn = std::exchange(seen_turn_, turn) != turn;
  const bool new_progress = std::exchange(seen_progress_, progress) != progress;
  const Duration since_last = now - std::exchange(last_look_, now);
  if (!at_work || new_turn || new_progress) {
    still_ = Duration::zero();
  } else {
    still_ += std::min(since_last, patience / 4);
  }
  return still_ < patience;
}

}  // namespace r1d::scheduler
