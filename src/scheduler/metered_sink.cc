// SPDX-License-Identifier: Apache-2.0
#include "scheduler/metered_sink.h"

#include <utility>

namespace r1d::scheduler {

MeteredSink::MeteredSink(const Request& request, telemetry::EngineMetrics& metrics)
    : sink_(request.sink),
      metrics_(metrics),
      arrival_(request.arrival),
      last_token_(static_cast<size_t>(request.n)) {}

void MeteredSink::on_start(int32_t index, TimePoint time) {
  metrics_.queue_wait(seconds_between(arrival_, time));
  sink_->on_start(index, time);
}

void MeteredSink::on_token(TokenEvent event) {
  std::optional<TimePoint>& last = last_token_[static_cast<size_t>(event.index)];
  if (last) {
    metrics_.inter_token_latency(seconds_between(*last, event.time));
  } else {
    metrics_.time_to_first_token(seconds_between(arrival_, event.time));
  }
  last = event.time;
  sink_->on_token(std::move(event));
}

void MeteredSink::on_finish(const FinishEvent& event) {
  telemetry::EngineMetrics::Finished finished{
      .reason = finish_reason_name(event.reason),
      .e2e_seconds = seconds_between(event.arrival, event.time),
      .prompt_tokens = event.num_prompt_tokens,
      .cached_tokens = event.num_cached_tokens,
      .output_tokens = event.num_output_tokens,
  };
  if (event.num_output_tokens > 1) {
    const TimePoint last = *last_token_[static_cast<size_t>(event.index)];
    finished.tpot_seconds =
        seconds_between(event.first_token, last) / (event.num_output_tokens - 1);
  }
  metrics_.finished(finished);
  sink_->on_finish(event);
}

}  // namespace r1d::scheduler
