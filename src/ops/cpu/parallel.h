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

  explicit Parallel(int32_t num_threads) : pool_(num_threads) {}

  [[nodiscard]] int32_t num_threads() const { return pool_.num_threads(); }
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
  base::ThreadPool pool_;
};

}  // namespace r1d::ops::cpu
