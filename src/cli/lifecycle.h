// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <optional>
#include <stop_token>
#include <thread>

#include <absl/status/status.h>

#include "r1d/base/mutex.h"

namespace r1d::cli {

// Why the daemon's main thread wakes up: the first SIGTERM or SIGINT, the loss of the engine, or
// SIGHUP, which asks for a reload. A second SIGTERM or SIGINT ends the process at once with status
// 128 + its number.
// Lifecycle: constructed before any other thread starts, so that all inherit the blocked signals.
// Threads: thread-safe.
class Lifecycle {
 public:
  Lifecycle();
  ~Lifecycle();
  Lifecycle(const Lifecycle&) = delete;
  Lifecycle& operator=(const Lifecycle&) = delete;

  // Blocks until there is a reason to end (OK for a signal, else why the engine was lost), or until
  // a reload was asked for (none).
  [[nodiscard]] std::optional<absl::Status> wait();

  [[nodiscard]] bool stop_requested() const { return stop_requested_.load(); }
  // The same for those that wait for it. Callbacks run on the signal watcher's thread.
  [[nodiscard]] std::stop_token stop_token() const { return stop_.get_token(); }

  void engine_lost(const absl::Status& why);

 private:
  void watch_signals();
  void end_with(const absl::Status& why);
  void ask_for_reload();

  std::atomic<bool> stop_requested_{false};
  std::stop_source stop_;
  base::Mutex mu_;
  base::CondVar changed_;
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mu_);
  bool reload_asked_ ABSL_GUARDED_BY(mu_) = false;
  std::thread watcher_;
};

// Lets the process open as many files as it may: the usual soft limit of 1024 is three hundred
// clients.
void raise_file_limit();

}  // namespace r1d::cli
