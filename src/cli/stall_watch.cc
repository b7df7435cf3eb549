// SPDX-License-Identifier: Apache-2.0
#include "cli/stall_watch.h"

#include <algorithm>
#include <utility>

namespace r1d::cli {

StallWatch::StallWatch(const Limits& limits,
                       std::optional<Duration> beat_every,
                       Callbacks callbacks)
    : beat_every_(beat_every),
      callbacks_(std::move(callbacks)),
      limits_(limits),
      thread_([this] { watch(); }) {}

StallWatch::~StallWatch() {
  {
    const base::MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void StallWatch::set_limits(const Limits& limits) {
  {
    const base::MutexLock lock(mu_);
    limits_ = limits;
  }
  changed_.notify_all();
}

void StallWatch::watch() {
  bool given_up = false;
  Duration stood{};  // since the stall was told
  while (const std::optional<Look> due = wait_for_look()) {
    // A look after the last movement comes within a tenth, the one that is late within another.
    const bool moves = callbacks_.look(due->limits.stall * 3 / 4);
    if (moves_.exchange(moves) != moves) {
      stood = Duration::zero();
      callbacks_.changed(moves);
    } else if (!moves) {
      stood += due->interval;
    }
    if (moves) {
      callbacks_.beat();
    } else if (stood >= due->limits.recovery && !std::exchange(given_up, true)) {
      callbacks_.give_up();
    }
  }
}

// With the limits in force when it is due; none at the end.
std::optional<StallWatch::Look> StallWatch::wait_for_look() {
  const auto begin = std::chrono::steady_clock::now();
  const base::MutexLock lock(mu_);
  while (!stop_) {
    Duration interval = limits_.stall / 10;
    if (beat_every_.has_value()) interval = std::min(interval, *beat_every_ / 4);
    const auto due = begin + interval;
    if (std::chrono::steady_clock::now() >= due) return Look{limits_, interval};
    changed_.wait_until(mu_, due);
  }
  return std::nullopt;
}

}  // namespace r1d::cli
