// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <absl/status/status.h>

#include "r1d/base/mutex.h"

namespace r1d::engine {

// One thread per rank. Threads: run() is called by one thread at a time; ranks sleep in between.
class RankGroup {
 public:
  using Job = std::function<absl::Status(int32_t rank)>;

  // `on_failure` is called (on the failing rank's thread) so that the others leave their
  // collectives.
  RankGroup(int32_t world_size, std::function<void()> on_failure);
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  // Runs `job` on every rank and waits for all. The first failure in time is what is returned (the
  // others only report that they were aborted), but one that recovery_cause() has no cause for goes
  // before one that it has. An exception becomes kInternal (no memory: kResourceExhausted).
  [[nodiscard]] absl::Status run(const Job& job);

 private:
  void work(int32_t rank);
  void finish(const absl::Status& status);

  const std::function<void()> on_failure_;
  base::Mutex mu_;
  base::CondVar start_;
  base::CondVar done_;
  const Job* job_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t busy_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace r1d::engine
