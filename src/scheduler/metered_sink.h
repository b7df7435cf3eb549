// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "r1d/base/clock.h"
#include "r1d/scheduler/request.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::scheduler {

// Stands before a request's sink and feeds the metrics of requests and sequences, latencies from
// the events' own times. Threads: the step loop's, as any sink.
class MeteredSink final : public OutputSink {
 public:
  // `metrics` outlives the sink. `request` gives the sink behind, and what the client asks for.
  MeteredSink(const Request& request, telemetry::EngineMetrics& metrics);

  void on_start(int32_t index, TimePoint time) override;
  void on_token(TokenEvent event) override;
  void on_finish(const FinishEvent& event) override;

 private:
  struct Sequence {
    std::optional<TimePoint> last_token;
    double sum_logprob = 0;
    int32_t num_logprobs = 0;
  };

  const std::shared_ptr<OutputSink> sink_;  // shared as in Request
  telemetry::EngineMetrics& metrics_;
  const TimePoint arrival_;
  const int64_t num_prompt_tokens_;
  std::vector<Sequence> sequences_;
  size_t num_finished_ = 0;
  int64_t longest_output_ = 0;
};

}  // namespace r1d::scheduler
