// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <absl/status/status.h>
#include <grpcpp/support/status.h>

namespace grpc {
class CallbackServerContext;
}

namespace r1d::transport {

// The status a call ends with. A wrong field becomes a google.rpc.BadRequest detail, a retry delay
// a google.rpc.RetryInfo detail and the trailer grpc-retry-pushback-ms, which is added to
// `context`: call it once, before the status is sent.
[[nodiscard]] grpc::Status to_grpc_status(const absl::Status& status,
                                          grpc::CallbackServerContext& context);

// "INVALID_ARGUMENT"; a literal.
[[nodiscard]] const char* code_name(absl::StatusCode code);

}  // namespace r1d::transport
