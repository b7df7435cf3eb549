// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace r1d::transport {

// Has gRPC and protobuf log through our loggers, once for the process: by themselves they write
// lines of their own form to standard error, and wait until it takes them.
void route_library_logs();

}  // namespace r1d::transport
