// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include <spdlog/sinks/sink.h>

#include "base/log_record.h"
#include "base/log_writer.h"

namespace r1d::base {

// spdlog's way to a LogWriter: gives records their form. Threads: thread-safe, without a lock but
// the writer's.
class LogSink final : public spdlog::sinks::sink {
 public:
  // Of the queue: a second or so of access records at ten thousand requests a second.
  static constexpr size_t kQueueBytes = size_t{4} << 20;

  struct Form {
    bool json = false;
    bool color = false;
  };

  LogSink(int fd, Form form, size_t queue_bytes = kQueueBytes);

  // A plain call: its whole text is the message.
  void log(const spdlog::details::log_msg& msg) override;
  void write(const LogRecord& record);

  // The writer flushes by itself, and the form is not spdlog's to change.
  void flush() override {}
  void set_pattern(const std::string& /*pattern*/) override {}
  void set_formatter(std::unique_ptr<spdlog::formatter> /*formatter*/) override {}

  [[nodiscard]] LogWriter& writer() { return writer_; }

 private:
  const Form form_;
  LogWriter writer_;
};

}  // namespace r1d::base
