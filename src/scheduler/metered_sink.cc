// SPDX-License-Identifier: Apache-2.0
#include "scheduler/metered_sink.h"

#include <algorithm>
#include <utility>

namespace r1d::scheduler {

MeteredSink::MeteredSink(const Request& request, telemetry::EngineMetrics& metrics)
    : sink_(request.sink),
      metrics_(metrics),
      arrival_(request.arrival),
      num_prompt_tokens_(static_cast<int64_t>(request.prompt.size())),
      sequences_(static_cast<size_t>(request.n)) {
  metrics_.accepted(request.n, request.sampling.max_tokens);
}

void MeteredSink::on_start(int32_t index, TimePoint time) {
  metrics_.queue_wait(seconds_between(arrival_, time));
  sink_->on_start(index, time);
}

void MeteredSink::on_token(TokenEvent event) {
  Sequence& sequence = sequences_[static_cast<size_t>(event.index)];
  if (sequence.last_token) {
    metrics_.next_token(seconds_between(*sequence.last_token, event.time));
  } else {
    metrics_.first_token(seconds_between(arrival_, event.time), num_prompt_tokens_);
  }
  sequence.last_token = event.time;
  if (event.token.logprob) {
    sequence.sum_logprob += *event.token.logprob;
    ++sequence.num_logprobs;
  }
  sink_->on_token(std::move(event));
}

void MeteredSink::on_finish(const FinishEvent& event) {
  const Sequence& sequence = sequences_[static_cast<size_t>(event.index)];
  const int32_t num_tokens = event.num_output_tokens;
  telemetry::EngineMetrics::Finished finished{
      .reason = finish_reason_name(event.reason),
      .e2e_seconds = seconds_between(event.arrival, event.time),
      .prompt_tokens = event.num_prompt_tokens,
      .cached_tokens = event.num_cached_tokens,
      .output_tokens = num_tokens,
  };
  if (sequence.last_token) {
    const double decode = seconds_between(event.first_token, *sequence.last_token);
    finished.phases = {.prefill_seconds = seconds_between(event.first_scheduled, event.first_token),
                       .decode_seconds = decode};
    if (num_tokens > 1) finished.tpot_seconds = decode / (num_tokens - 1);
    if (sequence.num_logprobs == num_tokens)
      finished.mean_logprob = sequence.sum_logprob / num_tokens;
  }
  metrics_.finished(finished);
  longest_output_ = std::max<int64_t>(longest_output_, num_tokens);
  if (++num_finished_ == sequences_.size()) metrics_.request_finished(longest_output_);
  sink_->on_finish(event);
}

}  // namespace r1d::scheduler
