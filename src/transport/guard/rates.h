// SPDX-License-Identifier: Apache-2.0
// What the guard counts of one connection, in constant memory. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "r1d/base/clock.h"

#include "transport/guard/limits.h"

namespace r1d::transport {

// Credits for frames that carry no request.
class ControlBudget {
 public:
  ControlBudget(const GuardLimits& limits, TimePoint now);

  // False when there is none left.
  [[nodiscard]] bool spend(TimePoint now);
  void earn(int64_t credits) { credits_ = std::min(credits_ + credits, burst_); }

 private:
  const int64_t burst_;
  const Duration interval_;  // one credit each
  int64_t credits_;
  TimePoint earned_until_;
};

// How many streams were opened within the last window, and how many of them were reset young.
class ResetWindow {
 public:
  ResetWindow(const GuardLimits& limits, TimePoint now);

  // Ids come in rising order.
  void opened(uint32_t stream, TimePoint now);
  // False when too many were reset.
  [[nodiscard]] bool reset(uint32_t stream, TimePoint now);

 private:
  struct Counts {
    int64_t opened = 0;
    int64_t reset_young = 0;
  };

  void advance(TimePoint now);
  void turn_ticks(int64_t count);

  // A window is the half that runs and the one before; a stream's age is known to a tick.
  static constexpr size_t kTicks = 10;

  const int64_t min_streams_;
  const Duration half_window_;
  const Duration tick_;
  std::array<Counts, 2> halves_{};  // [0] runs
  TimePoint half_end_;
  std::array<uint32_t, kTicks>
      last_stream_at_{};  // the highest id at each tick's end, latest first
  TimePoint tick_end_;
  uint32_t last_stream_ = 0;
};

}  // namespace r1d::transport
