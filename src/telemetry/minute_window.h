// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <absl/base/thread_annotations.h>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::telemetry {

// What came in over the last minute, in bins of a second. Externally locked; time never goes back.
class MinuteWindow {
 public:
  static constexpr int64_t kSeconds = 60;

  explicit MinuteWindow(TimePoint start) : start_(start) {}

  void add(TimePoint now, double amount);
  // The seconds between two times, each in the second in which it passed.
  void add_span(TimePoint from, TimePoint to);
  // A second: over the last minute, or since the start while that is less than a minute ago.
  [[nodiscard]] double rate(TimePoint now);

 private:
  [[nodiscard]] double seconds_at(TimePoint time) const { return seconds_between(start_, time); }
  double& bin(int64_t second);

  const TimePoint start_;
  std::array<double, kSeconds + 1> bins_{};  // by second modulo its size
  int64_t newest_ = 0;                       // the last second that has a bin
};

// Events a second over the last minute. Thread-safe.
class RateMeter {
 public:
  explicit RateMeter(const Clock& clock) : clock_(clock), window_(clock.now()) {}
  void count();
  [[nodiscard]] double per_second();

 private:
  const Clock& clock_;
  base::Mutex mu_;
  MinuteWindow window_ ABSL_GUARDED_BY(mu_);
};

// The share of the last minute that passed between begin() and end(), one that has not ended
// included; spans may overlap. Thread-safe.
class BusyMeter {
 public:
  explicit BusyMeter(const Clock& clock) : clock_(clock), window_(clock.now()) {}
  void begin();
  void end();
  void end_all();
  [[nodiscard]] double ratio();

 private:
  void advance(TimePoint now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock& clock_;
  base::Mutex mu_;
  MinuteWindow window_ ABSL_GUARDED_BY(mu_);
  int32_t num_spans_ ABSL_GUARDED_BY(mu_) = 0;
  TimePoint counted_to_ ABSL_GUARDED_BY(mu_);  // while busy
};

}  // namespace r1d::telemetry
