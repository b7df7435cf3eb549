// SPDX-License-Identifier: Apache-2.0
// Structured logs on standard error: one JSON object a line, or a readable line with key=value.
// Prompts and outputs never reach a log; whatever else clients wrote is escaped.
//
// A record is made on the caller's thread and written by a thread of its own. The queue between
// them is bounded by bytes: when standard error is not read, records are dropped and counted, and
// nobody waits.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include <spdlog/logger.h>

namespace r1d::base {

// kAuto: text on a terminal, else json.
enum class LogFormat : uint8_t { kAuto, kText, kJson };
using LogLevel = spdlog::level::level_enum;

// Sets what loggers made from now on print. Called once by main, before the first stage is built.
// `level`: trace, debug, info, warn or error.
void init_logging(const std::string& level, LogFormat format);

// The same level for every logger there is, and those to come. Thread-safe.
void set_log_level(const std::string& level);

// Waits until what was logged so far is written, for at most `limit`; false when it is not.
bool flush_logging(std::chrono::milliseconds limit);

// Records that were dropped because standard error was not read.
[[nodiscard]] int64_t num_dropped_log_records();

// The logger of one stage ("scheduler", "engine", ...); the same for each call. Thread-safe.
std::shared_ptr<spdlog::logger> make_logger(const std::string& stage);

// One typed field of a record. Names are literals of ours (lower_case). A text is only read during
// the call that logs it.
struct LogField {
  using Value = std::variant<std::string_view, int64_t, double, bool>;

  template <typename T>
  LogField(std::string_view its_name, const T& its_value) : name(its_name) {
    if constexpr (std::same_as<T, bool>) {
      value = its_value;
    } else if constexpr (std::integral<T>) {
      value = static_cast<int64_t>(its_value);
    } else if constexpr (std::floating_point<T>) {
      value = static_cast<double>(its_value);
    } else {
      value = std::string_view(its_value);
    }
  }

  std::string_view name;
  Value value;
};

// A record about a request, or about none when `trace_id` is empty. Costs a comparison when the
// level is off.
void log_event(spdlog::logger& logger,
               LogLevel level,
               std::string_view message,
               std::span<const LogField> fields,
               std::string_view trace_id = {});
inline void log_event(spdlog::logger& logger,
                      LogLevel level,
                      std::string_view message,
                      std::initializer_list<LogField> fields,
                      std::string_view trace_id = {}) {
  log_event(logger, level, message, std::span(fields.begin(), fields.size()), trace_id);
}

// For a field "..._ms": milliseconds to the microsecond.
[[nodiscard]] double log_ms(std::chrono::nanoseconds duration);
[[nodiscard]] double log_ms(double seconds);

}  // namespace r1d::base
