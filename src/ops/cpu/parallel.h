// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

#include "r1d/base/thread_pool.h"

namespace r1d::ops::cpu {

// The rank's threads. Confined to the rank's own thread.
class Parallel {
 public:
  // A wake-up of sleeping threads costs 10 to 20 us; one core does about 20 multiply-adds a
  // nanosecond, so that loops below this many run faster on the caller alone.
  static constexpr int64_t kInlineWork = int64_t{1} << 18;

  // Without `starts` no thread is started: for working out how much scratch so many would need.
  explicit Parallel(int32_t num_threads, bool starts = true)
      : num_threads_(num_threads), pool_(starts ? num_threads : 1) {}

  [[nodiscard]] int32_t num_threads() const { return num_threads_; }
  [[nodiscard]] uint64_t progress() const { return pool_.progress(); }  // callable from any thread

  // body(task, thread) for tasks 0 .. num_tasks - 1; `work` is about how many multiply-adds all
  // make.
  template <class Body>
  void run(int64_t num_tasks, int64_t work, const Body& body) {
    if (work < kInlineWork) {
      for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
      return;
    }
    pool_.parallel_for(num_tasks, std::cref(body));  // cref: no allocation for the captures
  }

 private:
  const int32_t num_threads_;
  base::ThreadPool pool_;
};

}  // namespace r1d::ops::cpu
