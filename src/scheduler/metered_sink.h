// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/scheduler/request.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::scheduler {

// Stands before a request's sink and feeds the latency metrics from the events' own times.
// Threads: the step loop's, as any sink.
class MeteredSink final : public OutputSink {
 public:
  // `metrics` outlives the sink. `request` gives the sink behind, n and the arrival.
  MeteredSink(const Request& request, telemetry::EngineMetrics& metrics);

  void on_start(int32_t index, TimePoint time) override;
  void on_token(TokenEvent event) override;
  void on_finish(const FinishEvent& event) override;

 private:
  const std::shared_ptr<OutputSink> sink_;  // shared as in Request
  telemetry::EngineMetrics& metrics_;
  const TimePoint arrival_;
  std::vector<std::optional<TimePoint>> last_token_;  // by sequence
};

}  // namespace r1d::scheduler
