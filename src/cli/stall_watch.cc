// SPDX-License-Identifier: Apache-2.0
#include "cli/stall_watch.h"

#include <algorithm>
#include <utility>

namespace r1d::cli {

StallWatch::StallWatch(Duration timeout, std::optional<Duration> beat_every, Callbacks callbacks)
    : beat_every_(beat_every),
      callbacks_(std::move(callbacks)),
      timeout_(timeout),
      thread_([this] { watch(); }) {}

StallWatch::~StallWatch() {
  {
    const base::MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void StallWatch::set_timeout(Duration timeout) {
  {
    const base::MutexLock lock(mu_);
    timeout_ = timeout;
  }
  changed_.notify_all();
}

void StallWatch::watch() {
  while (const std::optional<Duration> timeout = wait_for_look()) {
    // A look after the last movement comes within a tenth, the one that is late within another.
    const bool moves = callbacks_.look(*timeout * 3 / 4);
    if (moves_.exchange(moves) != moves) callbacks_.changed(moves);
    if (moves) callbacks_.beat();
  }
}

// The timeout in force when the next look is due; none at the end.
std::optional<Duration> StallWatch::wait_for_look() {
  const auto begin = std::chrono::steady_clock::now();
  const base::MutexLock lock(mu_);
  while (!stop_) {
    Duration interval = timeout_ / 10;
    if (beat_every_.has_value()) interval = std::min(interval, *beat_every_ / 4);
    const auto due = begin + interval;
    if (std::chrono::steady_clock::now() >= due) return timeout_;
    changed_.wait_until(mu_, due);
  }
  return std::nullopt;
}

}  // namespace r1d::cli
