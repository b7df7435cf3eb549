// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace r1d::base {

// Splits loops over a fixed set of threads; the caller is one of them, so a pool of 1 starts none.
// Lifecycle: threads start in the constructor and are joined in the destructor.
// Threads: parallel_for is called by one thread at a time (the rank that owns the pool). A thread
// with no work sleeps on a condition.
class ThreadPool {
 public:
  using Body = std::function<void(int64_t task, int32_t thread)>;

  explicit ThreadPool(int32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int32_t num_threads() const;

  // Calls body(task, thread) for every task in [0, num_tasks), tasks handed out in order, thread in
  // [0, num_threads()); returns when all are done. What a task throws first is thrown on here, when
  // none runs any more; then some may not have been called. `body` must not call the pool again.
  void parallel_for(int64_t num_tasks, const Body& body);

  // Grows while loops run, a step a task. Callable from any thread.
  [[nodiscard]] uint64_t progress() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::base
