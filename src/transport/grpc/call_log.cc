// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/call_log.h"

#include <cstring>
#include <utility>
#include <vector>

#include "r1d/admission/frontend.h"
#include "r1d/base/status.h"

#include "transport/grpc/status.h"

namespace r1d::transport {
namespace {

using base::LogField;

// Not the client's doing and not mere load.
bool is_our_fault(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsUnknown(status) || absl::IsDataLoss(status);
}

// The message of a fault of ours is ours; that of a refusal may hold what the client wrote, so only
// the field is named.
struct Outcome {
  explicit Outcome(const absl::Status& status)
      : code(code_name(status.code())), field(admission::field_of(status)) {
    if (is_our_fault(status)) error = message_of(status);
  }
  void add_to(std::vector<LogField>& fields) const {
    fields.emplace_back("status", code);
    if (!field.empty()) fields.emplace_back("field", field);
    if (!error.empty()) fields.emplace_back("error", error);
  }

  const char* code;
  const std::string field;
  std::string error;
};

}  // namespace

CallLog::CallLog(const char* method, base::TraceContext trace, TimePoint arrival)
    : method_(method), trace_(std::move(trace)), arrival_(arrival) {}

void CallLog::accepted(const std::string& request_id, int32_t input_length) {
  request_id_ = request_id;
  input_length_ = input_length;
}

void CallLog::on_start(TimePoint time) {
  if (!first_scheduled_.has_value()) first_scheduled_ = time;
}

void CallLog::on_token(TimePoint time) {
  if (!first_token_.has_value()) first_token_ = time;
  ++output_length_;
}

void CallLog::on_finish(const scheduler::FinishEvent& event) {
  const char* reason = scheduler::finish_reason_name(event.reason);
  reason_ = reason_ == nullptr || std::strcmp(reason_, reason) == 0 ? reason : "mixed";
  if (event.index == 0) cached_length_ = event.num_cached_tokens;
  num_preemptions_ += event.num_preemptions;
  batch_size_ = event.batch_size;
}

// A call that ends early does so before its sequences.
const char* CallLog::finish_reason(const absl::Status& status) const {
  if (reason_ != nullptr) return reason_;
  return scheduler::finish_reason_name(absl::IsDeadlineExceeded(status)
                                           ? scheduler::FinishReason::kDeadline
                                           : scheduler::FinishReason::kCancelled);
}

void CallLog::write(spdlog::logger& log,
                    bool all,
                    const absl::Status& status,
                    TimePoint end) const {
  const bool failed = is_our_fault(status);
  const base::LogLevel level = failed ? base::LogLevel::err : base::LogLevel::info;
  if ((!all && !failed) || !log.should_log(level)) return;
  const Outcome outcome(status);
  std::vector<LogField> fields;
  fields.reserve(16);
  fields.emplace_back("method", method_);
  outcome.add_to(fields);
  const bool was_accepted = !request_id_.empty();
  if (was_accepted) {
    fields.emplace_back("request_id", request_id_);
    if (!label_.empty()) fields.emplace_back("client_request_id", label_);
    fields.emplace_back("input_length", input_length_);
    fields.emplace_back("cached_length", cached_length_);
    fields.emplace_back("output_length", output_length_);
    fields.emplace_back("finish_reason", finish_reason(status));
    if (batch_size_ > 0) fields.emplace_back("batch_size", batch_size_);
    if (num_preemptions_ > 0) fields.emplace_back("preemptions", num_preemptions_);
    fields.emplace_back("queue_ms", base::log_ms(first_scheduled_.value_or(end) - arrival_));
    if (first_token_) fields.emplace_back("ttft_ms", base::log_ms(*first_token_ - arrival_));
  }
  fields.emplace_back("total_ms", base::log_ms(end - arrival_));
  fields.emplace_back("span_id", trace_.span_id);
  const char* message = was_accepted ? "request finished" : "request refused";
  base::log_event(log, level, message, fields, trace_.trace_id);
}

void log_answer(spdlog::logger& log,
                const char* method,
                const base::TraceContext& trace,
                const absl::Status& status) {
  const base::LogLevel level = is_our_fault(status) ? base::LogLevel::err : base::LogLevel::debug;
  if (!log.should_log(level)) return;
  const Outcome outcome(status);
  std::vector<LogField> fields = {{"method", method}};
  outcome.add_to(fields);
  base::log_event(log, level, "request answered", fields, trace.trace_id);
}

}  // namespace r1d::transport
