// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <stop_token>
#include <thread>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::cli {

// Calls `expired` when its scope goes on for `limit` after a stop was asked for: a read from a file
// server that is gone may never come back, and nobody can take it off a thread.
// Threads: one of its own, asleep; `expired` is called on it.
class StopGrace {
 public:
  StopGrace(std::stop_token stop, Duration limit, std::function<void()> expired);
  ~StopGrace();
  StopGrace(const StopGrace&) = delete;
  StopGrace& operator=(const StopGrace&) = delete;

 private:
  void watch();

  const Duration limit_;
  const std::function<void()> expired_;
  base::Mutex mu_;
  base::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
  std::stop_callback<std::function<void()>> on_stop_;
};

}  // namespace r1d::cli
