// SPDX-License-Identifier: Apache-2.0
#include "transport/guard/rates.h"

#include <chrono>

namespace r1d::transport {

ControlBudget::ControlBudget(const GuardLimits& limits, TimePoint now)
    : burst_(limits.control_burst),
      interval_(std::chrono::duration_cast<Duration>(std::chrono::seconds(1)) /
                limits.control_per_second),
      credits_(limits.control_burst),
      earned_until_(now) {}

bool ControlBudget::spend(TimePoint now) {
  if (const int64_t earned = (now - earned_until_) / interval_; earned > 0) {
    earned_until_ += earned * interval_;
    earn(earned);
  }
  if (credits_ == 0) return false;
  --credits_;
  return true;
}

ResetWindow::ResetWindow(const GuardLimits& limits, TimePoint now)
    : min_streams_(limits.min_streams),
      half_window_(std::chrono::duration_cast<Duration>(limits.reset_window) / 2),
      tick_(std::chrono::duration_cast<Duration>(limits.young_stream) / kTicks),
      half_end_(now + half_window_),
      tick_end_(now + tick_) {}

void ResetWindow::opened(uint32_t stream, TimePoint now) {
  advance(now);
  last_stream_ = stream;
  ++halves_[0].opened;
}

bool ResetWindow::reset(uint32_t stream, TimePoint now) {
  advance(now);
  if (stream > last_stream_at_.back()) ++halves_[0].reset_young;
  const int64_t num_opened = halves_[0].opened + halves_[1].opened;
  const int64_t num_young = halves_[0].reset_young + halves_[1].reset_young;
  return num_opened < min_streams_ || 2 * num_young <= num_opened;
}

void ResetWindow::advance(TimePoint now) {
  if (now >= half_end_) {
    const bool one_has_passed = now < half_end_ + half_window_;
    halves_[1] = one_has_passed ? halves_[0] : Counts{};
    halves_[0] = {};
    half_end_ = one_has_passed ? half_end_ + half_window_ : now + half_window_;
  }
  if (now >= tick_end_) {
    const int64_t count = (now - tick_end_) / tick_ + 1;
    turn_ticks(count);
    tick_end_ += count * tick_;
  }
}

void ResetWindow::turn_ticks(int64_t count) {
  const auto turned = static_cast<ptrdiff_t>(std::min<int64_t>(count, kTicks));
  std::copy_backward(
      last_stream_at_.begin(), last_stream_at_.end() - turned, last_stream_at_.end());
  std::fill_n(last_stream_at_.begin(), turned, last_stream_);
}

}  // namespace r1d::transport
