// SPDX-License-Identifier: Apache-2.0
// What a call's metadata say for logs. Metadata are the client's: what is not to the letter counts
// as not given, since proxies add them unasked.
#pragma once

#include <optional>
#include <string>

#include <grpcpp/server_context.h>

#include "r1d/base/trace_context.h"

namespace r1d::transport {

struct CallLabels {
  std::optional<base::TraceContext> trace;  // traceparent
  std::string request_id;                   // x-request-id; "" when there is none
};

[[nodiscard]] CallLabels labels_of(const grpc::CallbackServerContext& context);

}  // namespace r1d::transport
