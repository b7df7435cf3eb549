// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/base/mutex.h"

namespace r1d::transport {

class GenerateCall;

// The calls that have not ended: a shutdown waits for them and no longer, a stalled engine ends
// them. Thread-safe.
class OpenCalls {
 public:
  void add(const std::shared_ptr<GenerateCall>& call) {
    const base::MutexLock lock(mu_);
    calls_.emplace(call.get(), call);
  }
  void remove(const GenerateCall* call) {
    const base::MutexLock lock(mu_);
    calls_.erase(call);
    if (calls_.empty()) none_.notify_all();
  }
  [[nodiscard]] std::vector<std::shared_ptr<GenerateCall>> all() {
    std::vector<std::shared_ptr<GenerateCall>> calls;
    const base::MutexLock lock(mu_);
    for (const auto& [key, weak] : calls_) {
      if (auto call = weak.lock(); call != nullptr) calls.push_back(std::move(call));
    }
    return calls;
  }
  // Returns when there is none, or at `deadline` of the machine's clock.
  void wait_for_none(TimePoint deadline) {
    const base::MutexLock lock(mu_);
    while (!calls_.empty() && std::chrono::steady_clock::now() < deadline) {
      none_.wait_until(mu_, deadline);
    }
  }

 private:
  base::Mutex mu_;
  base::CondVar none_;
  std::unordered_map<const GenerateCall*, std::weak_ptr<GenerateCall>> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace r1d::transport
