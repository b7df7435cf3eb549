// SPDX-License-Identifier: Apache-2.0
#include "base/log_sink.h"

namespace r1d::base {
namespace {

std::string form_of(const LogRecord& record, LogSink::Form form) {
  std::string line;
  line.reserve(512);
  if (form.json) {
    append_json(record, line);
  } else {
    append_text(record, form.color, line);
  }
  return line;
}

std::string describe_loss(int64_t num_lost, LogSink::Form form) {
  const LogField count("dropped", num_lost);
  return form_of({.time = std::chrono::system_clock::now(),
                  .level = LogLevel::warn,
                  .stage = "log",
                  .message = "log records were dropped: nobody read standard error",
                  .trace_id = {},
                  .fields = {&count, 1}},
                 form);
}

}  // namespace

LogSink::LogSink(int fd, Form form, size_t queue_bytes)
    : form_(form),
      writer_(fd, queue_bytes, [form](int64_t num_lost) { return describe_loss(num_lost, form); }) {
}

void LogSink::log(const spdlog::details::log_msg& msg) {
  write({.time = msg.time,
         .level = msg.level,
         .stage = {msg.logger_name.data(), msg.logger_name.size()},
         .message = {msg.payload.data(), msg.payload.size()},
         .trace_id = {},
         .fields = {}});
}

void LogSink::write(const LogRecord& record) {
  writer_.write(form_of(record, form_), record.level >= LogLevel::warn);
}

}  // namespace r1d::base
