// SPDX-License-Identifier: Apache-2.0
// What the threads of a packing, or of its verification, share.
#pragma once

#include <atomic>
#include <cstdint>

#include <absl/status/status.h>

#include "r1d/base/mutex.h"
#include "r1d/checkpoint/packed.h"

namespace r1d::checkpoint {

// Adds up what many threads have done and tells it, one call at a time. Threads: thread-safe.
class PackMeter {
 public:
  PackMeter(int64_t total_bytes, const PackProgress& progress)
      : total_bytes_(total_bytes), progress_(progress) {}

  [[nodiscard]] absl::Status add(int64_t bytes) {
    const base::MutexLock lock(mu_);
    done_bytes_ += bytes;
    if (!progress_ || total_bytes_ == 0) return absl::OkStatus();
    return progress_(static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_));
  }

 private:
  const int64_t total_bytes_;
  const PackProgress& progress_;
  base::Mutex mu_;
  int64_t done_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

// Keeps the first error of many threads. Threads: thread-safe; take() when they are done.
class FirstError {
 public:
  void set(const absl::Status& status) {
    if (!status.ok() && !set_.exchange(true)) error_ = status;
  }
  [[nodiscard]] bool is_set() const { return set_; }
  [[nodiscard]] absl::Status take() const { return error_; }

 private:
  std::atomic<bool> set_ = false;
  absl::Status error_;  // written once, by the thread that set `set_`
};

}  // namespace r1d::checkpoint
