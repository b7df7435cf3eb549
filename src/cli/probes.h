// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <string>

#include "r1d/admission/frontend.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/management_server.h"

namespace r1d::cli {

// What the management port answers. Threads: the handlers run on the port's thread, the rest is
// thread-safe. Outlives the server that has its routes.
class Probes {
 public:
  Probes(const telemetry::Registry& registry, const admission::Frontend& frontend)
      : registry_(registry), frontend_(frontend) {}

  [[nodiscard]] transport::ManagementRoutes routes() const;

  void set_load_fraction(double fraction) { load_fraction_.store(fraction); }

 private:
  using State = admission::Frontend::State;

  [[nodiscard]] transport::HttpReply metrics() const;
  [[nodiscard]] transport::HttpReply liveness() const;
  [[nodiscard]] transport::HttpReply readiness() const;
  [[nodiscard]] transport::HttpReply startup() const;
  [[nodiscard]] transport::HttpReply verbose(const std::string& probe,
                                             const transport::HttpReply& verdict) const;
  [[nodiscard]] static transport::HttpReply version();

  const telemetry::Registry& registry_;
  const admission::Frontend& frontend_;
  std::atomic<double> load_fraction_{0};
};

}  // namespace r1d::cli
