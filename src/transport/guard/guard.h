// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/telemetry/metrics.h"

#include "transport/guard/connection_table.h"
#include "transport/guard/limits.h"
#include "transport/guard/relay.h"

namespace r1d::transport {

struct GuardOptions {
  std::string address;
  ConnectionTable::Limits connections;
  GuardLimits limits;
};

// Stands before an HTTP/2 server: accepts its clients, and lets only those through who keep the
// limits, for as long as they do (FrameGuard). Neither headers nor messages are read, only frames.
// Lifecycle: listen() binds; start() accepts; stop_accepting(); finish(), once the server has ended
// its connections; the destructor cuts what is left.
// Threads: a few of its own, each with its share of the connections. The calls are thread-safe.
class Guard {
 public:
  // kUnavailable when the address cannot be bound; `metrics` outlives the guard.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<Guard>> listen(
      const GuardOptions& options, telemetry::TransportMetrics& metrics);
  virtual ~Guard() = default;

  [[nodiscard]] virtual int32_t port() const = 0;
  // `hand_over` is called on the guard's threads; what it uses lives until finish() has returned.
  virtual void start(HandOver hand_over) = 0;
  // Returns when no further client is handed over.
  virtual void stop_accepting() = 0;
  // Returns when the clients have what the server sent them, or after `limit`.
  virtual void finish(std::chrono::milliseconds limit) = 0;
};

}  // namespace r1d::transport
