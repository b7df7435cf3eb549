// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

namespace r1d::base {

// Writes lines to a file descriptor on a thread of its own, so that whoever logs never waits for
// the reader of a pipe.
// Lifecycle: constructed (thread runs) -> write() -> destructor, which waits kLastWait at most for
// what is queued. A thread that is stuck in write(2) by then is left behind with its state.
// Threads: thread-safe.
// Invariant: lines are whole and in order; where some were dropped, one line of `describe_loss`
// says how many.
class LogWriter {
 public:
  static constexpr std::chrono::milliseconds kLastWait{1000};

  using DescribeLoss = std::function<std::string(int64_t num_lost)>;

  // `fd` stays the caller's. At most `capacity_bytes` wait to be written, besides as much that is
  // being written.
  LogWriter(int fd, size_t capacity_bytes, DescribeLoss describe_loss);
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Queues `line`, or drops it when the queue is full. One that is not `urgent` finds it full at
  // three quarters, so that a flood of them leaves room for those that matter.
  void write(std::string_view line, bool urgent);

  // As flush_logging.
  bool flush(std::chrono::milliseconds limit);

  [[nodiscard]] int64_t num_dropped() const;

 private:
  struct State;
  static void run(State& state);

  const std::shared_ptr<State> state_;  // shared with the thread, which may outlive this
  std::thread thread_;
};

}  // namespace r1d::base
