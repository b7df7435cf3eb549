// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/dispatcher.h"

#include <utility>

namespace r1d::transport {

Dispatcher::Dispatcher() : thread_([this] { loop(); }) {}

Dispatcher::~Dispatcher() {
  {
    const base::MutexLock lock(mu_);
    stopping_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

void Dispatcher::post(std::shared_ptr<Task> task) {
  const base::MutexLock lock(mu_);
  queue_.push_back(std::move(task));
  if (queue_.size() == 1) changed_.notify_one();
}

void Dispatcher::loop() {
  std::vector<std::shared_ptr<Task>> tasks;
  while (true) {
    {
      const base::MutexLock lock(mu_);
      while (queue_.empty() && !stopping_) changed_.wait(mu_);
      if (queue_.empty()) return;
      tasks.swap(queue_);
    }
    for (const std::shared_ptr<Task>& task : tasks) task->run();
    tasks.clear();
  }
}

}  // namespace r1d::transport
