// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/thread_pool.h"

#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "r1d/base/check.h"
#include "r1d/base/mutex.h"

namespace r1d::base {

class ThreadPool::Impl {
 public:
  explicit Impl(int32_t num_threads) : num_threads_(num_threads) {
    R1D_CHECK(num_threads >= 1);
    threads_.reserve(static_cast<size_t>(num_threads) - 1);
    for (int32_t i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
  }

  ~Impl() {
    {
      MutexLock lock(mu_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  [[nodiscard]] int32_t num_threads() const { return num_threads_; }

  [[nodiscard]] uint64_t progress() const {
    return static_cast<uint64_t>(next_.load(std::memory_order_relaxed));
  }

  void parallel_for(int64_t num_tasks, const Body& body) {
    if (num_tasks <= 0) return;
    if (num_threads_ == 1 || num_tasks == 1) {
      for (int64_t task = 0; task < num_tasks; ++task) {
        body(task, 0);
        next_.fetch_add(1, std::memory_order_relaxed);
      }
      return;
    }
    const int64_t first = next_.load(std::memory_order_relaxed);
    {
      MutexLock lock(mu_);
      body_ = &body;
      first_ = first;
      num_tasks_ = num_tasks;
      ++generation_;
    }
    wake_.notify_all();
    run_tasks(body, first, num_tasks, 0);
    std::exception_ptr thrown;
    {
      MutexLock lock(mu_);
      body_ = nullptr;  // no task is left: a worker that wakes up now goes back to sleep
      while (busy_ != 0) done_.wait(mu_);
      thrown = std::exchange(thrown_, nullptr);
    }
    if (thrown) std::rethrow_exception(thrown);
  }

 private:
  void work(int32_t thread) {
    uint64_t seen = 0;
    while (true) {
      const Body* body = nullptr;
      int64_t first = 0;
      int64_t num_tasks = 0;
      {
        MutexLock lock(mu_);
        while (!stop_ && (generation_ == seen || body_ == nullptr)) wake_.wait(mu_);
        if (stop_) return;
        seen = generation_;
        body = body_;
        first = first_;
        num_tasks = num_tasks_;
        ++busy_;
      }
      run_tasks(*body, first, num_tasks, thread);
      MutexLock lock(mu_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void run_tasks(const Body& body, int64_t first, int64_t num_tasks, int32_t thread) {
    while (true) {
      const int64_t task = next_.fetch_add(1, std::memory_order_relaxed) - first;
      if (task >= num_tasks) return;
      try {
        body(task, thread);
      } catch (...) {
        MutexLock lock(mu_);
        if (!thrown_) thrown_ = std::current_exception();
      }
    }
  }

  const int32_t num_threads_;
  std::atomic<int64_t> next_{0};  // never falls: a loop counts its tasks from where it found it
  Mutex mu_;
  CondVar wake_;                                     // a new loop, or stop
  CondVar done_;                                     // the last worker left the loop
  const Body* body_ ABSL_GUARDED_BY(mu_) = nullptr;  // null once all tasks are handed out
  int64_t first_ ABSL_GUARDED_BY(mu_) = 0;           // next_ when the loop began
  int64_t num_tasks_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t busy_ ABSL_GUARDED_BY(mu_) = 0;  // workers inside the current loop
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
  std::exception_ptr thrown_ ABSL_GUARDED_BY(mu_);  // by the first task that threw
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

ThreadPool::ThreadPool(int32_t num_threads) : impl_(std::make_unique<Impl>(num_threads)) {}
ThreadPool::~ThreadPool() = default;

int32_t ThreadPool::num_threads() const {
  return impl_->num_threads();
}

uint64_t ThreadPool::progress() const {
  return impl_->progress();
}

void ThreadPool::parallel_for(int64_t num_tasks, const Body& body) {
  impl_->parallel_for(num_tasks, body);
}

}  // namespace r1d::base
