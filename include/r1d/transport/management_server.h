// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::transport {

struct HttpReply {
  int32_t status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

struct ManagementOptions {
  std::string address = "127.0.0.1:8081";
  int32_t max_connections = 256;  // one more is answered 503 and closed
  // From the connection, or the end of the last reply, to the end of the next request's head; an
  // idle connection is closed by it too.
  std::chrono::milliseconds head_timeout{10000};
  std::chrono::milliseconds write_timeout{30000};  // for the client to take one reply
};

// One GET handler per path: /metrics, /livez, /readyz, /startupz, /version. A path with a query
// string ("/livez?verbose") is served for that string alone. Called on the server's own thread;
// must not block. One that throws is answered 500.
using ManagementRoutes = std::vector<std::pair<std::string, std::function<HttpReply()>>>;

// HTTP/1.1 for probes and scrapes, one thread of its own (Boost.Beast), so that it answers when the
// data ports are flooded. GET and HEAD; a query string is ignored. Refused: heads over 16 KiB
// (431), bodies (413), other methods (405), other paths (404), what is not HTTP (400). A slow
// client is cut off without a word.
class ManagementServer {
 public:
  // kUnavailable, with address and reason, when it cannot listen there; kInvalidArgument when
  // `options.address` is no host:port.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<ManagementServer>> start(
      const ManagementOptions& options, ManagementRoutes routes);
  virtual ~ManagementServer() = default;  // stops and joins
  [[nodiscard]] virtual int32_t port() const = 0;
};

}  // namespace r1d::transport
