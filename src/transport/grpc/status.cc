// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/status.h"

#include <chrono>
#include <string>

#include <grpcpp/server_context.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

#include "r1d/admission/frontend.h"
#include "r1d/base/status.h"

namespace r1d::transport {
namespace {

void add_bad_request(const std::string& field,
                     const std::string& message,
                     google::rpc::Status& details) {
  google::rpc::BadRequest bad;
  auto& violation = *bad.add_field_violations();
  violation.set_field(field);
  const std::string prefix = field + ": ";
  violation.set_description(message.starts_with(prefix) ? message.substr(prefix.size()) : message);
  details.add_details()->PackFrom(bad);
}

void add_retry_info(std::chrono::milliseconds delay, google::rpc::Status& details) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(delay.count() / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay.count() % 1000) * 1000000);
  details.add_details()->PackFrom(retry);
}

}  // namespace

grpc::Status to_grpc_status(const absl::Status& status, grpc::CallbackServerContext& context) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = message_of(status);
  google::rpc::Status details;
  if (const std::string field = admission::field_of(status); !field.empty()) {
    add_bad_request(field, message, details);
  }
  if (const auto delay = admission::retry_after_of(status); delay.has_value()) {
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(*delay);
    add_retry_info(ms, details);
    context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(ms.count()));
  }
  const auto code = static_cast<grpc::StatusCode>(status.code());  // the numbers are the same
  if (details.details().empty()) return {code, message};
  details.set_code(code);
  details.set_message(message);
  return {code, message, details.SerializeAsString()};
}

const char* code_name(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return "OK";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kNotFound:
      return "NOT_FOUND";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case absl::StatusCode::kUnimplemented:
      return "UNIMPLEMENTED";
    case absl::StatusCode::kInternal:
      return "INTERNAL";
    case absl::StatusCode::kUnavailable:
      return "UNAVAILABLE";
    case absl::StatusCode::kDataLoss:
      return "DATA_LOSS";
    default:  // r1d makes no others
      return "UNKNOWN";
  }
}

}  // namespace r1d::transport
