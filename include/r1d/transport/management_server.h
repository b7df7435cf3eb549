// SPDX-License-Identifier: Apache-2.0
#pragma once

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
  int32_t max_connections = 256;
};

// One GET handler per path: /metrics, /livez, /readyz, /startupz, /version. Called on the server's
// own thread; must not block.
using ManagementRoutes = std::vector<std::pair<std::string, std::function<HttpReply()>>>;

// HTTP/1.1 for probes and scrapes, one thread of its own (Boost.Beast), so that it answers when the data ports are flooded.
// Heads over 16 KiB, bodies, slow clients (10 s) and unknown paths or methods are refused.
class ManagementServer {
 public:
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<ManagementServer>> start(
      const ManagementOptions& options, ManagementRoutes routes);
  virtual ~ManagementServer() = default;  // stops and joins
  [[nodiscard]] virtual int32_t port() const = 0;
};

}  // namespace r1d::transport
