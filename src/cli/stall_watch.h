// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::cli {

// Looks at the engine ten times in `stall`, on a thread of its own, and says when it has come to a
// stand and when it moves again: within `stall` of the last movement, and not before three quarters
// of it. Gives up, once, when it has stood for `recovery` after that was said, time in which the
// process itself did not run not counted.
// Lifecycle: looks from the constructor to the destructor.
// Threads: moves() and set_limits() by any; the callbacks run on the watch's thread.
class StallWatch {
 public:
  struct Limits {
    Duration stall{};
    Duration recovery{};
  };
  struct Callbacks {
    std::function<bool(Duration patience)> look;  // as scheduler::StepLoop::alive
    std::function<void(bool moves)> changed;
    std::function<void()> give_up;
    std::function<void()> beat;  // after every look that found movement
  };

  // `beat_every`: how often beat() is wanted at least while the engine moves.
  StallWatch(const Limits& limits, std::optional<Duration> beat_every, Callbacks callbacks);
  ~StallWatch();
  StallWatch(const StallWatch&) = delete;
  StallWatch& operator=(const StallWatch&) = delete;

  [[nodiscard]] bool moves() const { return moves_.load(); }
  void set_limits(const Limits& limits);

 private:
  // A look that is due.
  struct Look {
    Limits limits;
    Duration interval{};  // since the last one
  };

  void watch();
  [[nodiscard]] std::optional<Look> wait_for_look();

  const std::optional<Duration> beat_every_;
  const Callbacks callbacks_;
  std::atomic<bool> moves_{true};
  base::Mutex mu_;
  base::CondVar changed_;
  Limits limits_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace r1d::cli
