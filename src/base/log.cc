// SPDX-License-Identifier: Apache-2.0
#include "r1d/base/log.h"

#include <cmath>
#include <cstdlib>
#include <string_view>
#include <unistd.h>
#include <utility>

#include <spdlog/spdlog.h>

#include "base/log_record.h"
#include "base/log_sink.h"

namespace r1d::base {
namespace {

bool takes_color(bool is_terminal) {
  const char* term = std::getenv("TERM");
  return is_terminal && std::getenv("NO_COLOR") == nullptr && term != nullptr &&
         std::string_view(term) != "dumb";
}

LogSink::Form choose_form(LogFormat format) {
  const bool is_terminal = ::isatty(STDERR_FILENO) == 1;
  const bool json = format == LogFormat::kJson || (format == LogFormat::kAuto && !is_terminal);
  return {.json = json, .color = !json && takes_color(is_terminal)};
}

LogSink* log_sink(const spdlog::logger& logger) {
  const auto& sinks = logger.sinks();
  return sinks.empty() ? nullptr : dynamic_cast<LogSink*>(sinks.front().get());
}

// For a logger made before init_logging(): tests, and commands that log nothing of their own.
void log_plain(spdlog::logger& logger, const LogRecord& record) {
  std::string line;
  append_words(record, line);
  logger.log(record.level, line);
}

}  // namespace

void init_logging(const std::string& level, LogFormat format) {
  auto sink = std::make_shared<LogSink>(STDERR_FILENO, choose_form(format));
  spdlog::drop_all();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("r1d", std::move(sink)));
  set_log_level(level);
}

void set_log_level(const std::string& level) {
  spdlog::set_level(spdlog::level::from_str(level));
}

bool flush_logging(std::chrono::milliseconds limit) {
  const std::shared_ptr<spdlog::logger> root = spdlog::default_logger();
  LogSink* sink = root == nullptr ? nullptr : log_sink(*root);
  return sink == nullptr || sink->writer().flush(limit);
}

int64_t num_dropped_log_records() {
  const std::shared_ptr<spdlog::logger> root = spdlog::default_logger();
  LogSink* sink = root == nullptr ? nullptr : log_sink(*root);
  return sink == nullptr ? 0 : sink->writer().num_dropped();
}

std::shared_ptr<spdlog::logger> make_logger(const std::string& stage) {
  if (auto known = spdlog::get(stage)) return known;
  auto logger = spdlog::default_logger()->clone(stage);
  try {
    spdlog::register_logger(logger);
  } catch (const spdlog::spdlog_ex&) {
    // Another thread was first; this one writes to the same place.
    if (auto known = spdlog::get(stage)) return known;
  }
  return logger;
}

void log_event(spdlog::logger& logger,
               LogLevel level,
               std::string_view message,
               std::span<const LogField> fields,
               std::string_view trace_id) {
  if (!logger.should_log(level)) return;
  const LogRecord record{.time = std::chrono::system_clock::now(),
                         .level = level,
                         .stage = logger.name(),
                         .message = message,
                         .trace_id = trace_id,
                         .fields = fields};
  if (LogSink* sink = log_sink(logger); sink != nullptr) {
    sink->write(record);
  } else {
    log_plain(logger, record);
  }
}

double log_ms(std::chrono::nanoseconds duration) {
  return log_ms(std::chrono::duration<double>(duration).count());
}

double log_ms(double seconds) {
  return std::round(seconds * 1e6) / 1e3;
}

}  // namespace r1d::base
