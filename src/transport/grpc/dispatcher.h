// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "r1d/base/mutex.h"

namespace r1d::transport {

// The thread that turns new tokens into messages, so that the step loop only appends to a buffer:
// serialising and writing to sockets happens here or on gRPC's threads.
// Lifecycle: the thread starts in the constructor; the destructor runs what is queued and joins.
// Threads: post() is thread-safe. Queue bound: a task posts itself again only once it has begun to
// run, so there are at most as many entries as open calls.
class Dispatcher {
 public:
  class Task {
   public:
    virtual ~Task() = default;
    virtual void run() = 0;  // on the dispatcher's thread; must not block
  };

  Dispatcher();
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  void post(std::shared_ptr<Task> task);

 private:
  void loop();

  base::Mutex mu_;
  base::CondVar changed_;
  std::vector<std::shared_ptr<Task>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace r1d::transport
