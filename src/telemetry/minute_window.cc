// SPDX-License-Identifier: Apache-2.0
#include "telemetry/minute_window.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace r1d::telemetry {

// The bin of a second that is at most a minute older than the newest; opens later ones, empty.
double& MinuteWindow::bin(int64_t second) {
  const auto size = static_cast<int64_t>(bins_.size());
  const auto at = [&](int64_t s) -> double& { return bins_[static_cast<size_t>(s % size)]; };
  for (int64_t s = std::max(newest_ + 1, second - kSeconds); s <= second; ++s) at(s) = 0;
  newest_ = std::max(newest_, second);
  return at(second);
}

void MinuteWindow::add(TimePoint now, double amount) {
  const auto second = static_cast<int64_t>(std::max(seconds_at(now), 0.0));
  bin(std::max(second, newest_)) += amount;
}

void MinuteWindow::add_span(TimePoint from, TimePoint to) {
  const double end = seconds_at(to);
  double at = std::max({seconds_at(from), end - static_cast<double>(kSeconds), 0.0});
  while (at < end) {
    const double until = std::min(std::floor(at) + 1, end);
    bin(std::max(static_cast<int64_t>(at), newest_)) += until - at;
    at = until;
  }
}

double MinuteWindow::rate(TimePoint now) {
  const double age = std::max(seconds_at(now), 0.0);
  bin(static_cast<int64_t>(age));
  // 60 whole seconds and what has passed of the running one.
  const double covered = std::min(age, static_cast<double>(kSeconds) + age - std::floor(age));
  if (covered <= 0) return 0;
  return std::accumulate(bins_.begin(), bins_.end(), 0.0) / covered;
}

void RateMeter::count() {
  base::MutexLock lock(mu_);
  window_.add(clock_.now(), 1);
}

double RateMeter::per_second() {
  base::MutexLock lock(mu_);
  return window_.rate(clock_.now());
}

void BusyMeter::begin() {
  base::MutexLock lock(mu_);
  advance(clock_.now());
  ++num_spans_;
  counted_to_ = clock_.now();
}

void BusyMeter::end() {
  base::MutexLock lock(mu_);
  advance(clock_.now());
  num_spans_ = std::max(0, num_spans_ - 1);
}

void BusyMeter::end_all() {
  base::MutexLock lock(mu_);
  advance(clock_.now());
  num_spans_ = 0;
}

double BusyMeter::ratio() {
  base::MutexLock lock(mu_);
  const TimePoint now = clock_.now();
  advance(now);
  return std::min(window_.rate(now), 1.0);
}

void BusyMeter::advance(TimePoint now) {
  if (num_spans_ == 0) return;
  window_.add_span(counted_to_, now);
  counted_to_ = now;
}

}  // namespace r1d::telemetry
