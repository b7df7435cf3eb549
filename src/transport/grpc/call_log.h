// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <absl/status/status.h>

#include "r1d/base/clock.h"
#include "r1d/base/log.h"
#include "r1d/base/trace_context.h"
#include "r1d/scheduler/request.h"

namespace r1d::transport {

// The access record of one call that generates, put together from its events: lengths, times and
// ends, never a text. Lifecycle: constructed -> accepted(), unless it is refused -> events ->
// write(). Threads: externally locked.
class CallLog {
 public:
  // `trace`: of this call.
  CallLog(const char* method, base::TraceContext trace, TimePoint arrival);

  [[nodiscard]] const base::TraceContext& trace() const { return trace_; }

  // The client's own name for the request, "" for none; written only once admission took it.
  void label(const std::string& label) { label_ = label; }
  void accepted(const std::string& request_id, int32_t input_length);
  void on_start(TimePoint time);
  void on_token(TimePoint time);
  void on_finish(const scheduler::FinishEvent& event);

  // Writes the record: at error when the call failed by a fault of ours, else at info and only with
  // `all`.
  void write(spdlog::logger& log, bool all, const absl::Status& status, TimePoint end) const;

 private:
  [[nodiscard]] const char* finish_reason(const absl::Status& status) const;

  const char* const method_;
  const base::TraceContext trace_;
  const TimePoint arrival_;
  std::string request_id_;  // "" until accepted
  std::string label_;
  int32_t input_length_ = 0;
  int32_t cached_length_ = 0;
  int64_t output_length_ = 0;  // tokens that the engine made, of all sequences
  int32_t num_preemptions_ = 0;
  int32_t batch_size_ = 0;
  std::optional<TimePoint> first_scheduled_;
  std::optional<TimePoint> first_token_;
  const char* reason_ = nullptr;  // that all ended sequences share, else "mixed"
};

// Writes the record of a call that needs no engine: at debug, or as above.
void log_answer(spdlog::logger& log,
                const char* method,
                const base::TraceContext& trace,
                const absl::Status& status);

}  // namespace r1d::transport
