// SPDX-License-Identifier: Apache-2.0
#include "scheduler/metered_sink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TEST(MeteredSinkTest, FeedsLatenciesAndPassesEventsOn) {
  telemetry::Registry registry;
  telemetry::EngineMetrics metrics(registry);
  const TimePoint arrival = ManualClock().now();
  auto behind = std::make_shared<RecordingSink>();
  MeteredSink sink(make_request(1, counting_prompt(5), 3, behind, arrival), metrics);

  sink.on_start(0, arrival + milliseconds(250));
  for (const int32_t ms : {500, 750, 1500}) {
    TokenEvent event;
    event.token.token = ms;
    event.token.logprob = -1;
    event.time = arrival + milliseconds(ms);
    sink.on_token(std::move(event));
  }
  FinishEvent finish;
  finish.reason = FinishReason::kLength;
  finish.num_prompt_tokens = 5;
  finish.num_output_tokens = 3;
  finish.arrival = arrival;
  finish.first_scheduled = arrival + milliseconds(250);
  finish.first_token = arrival + milliseconds(500);
  finish.time = arrival + milliseconds(2000);
  sink.on_finish(finish);

  const std::string text = registry.render();
  EXPECT_THAT(text, HasSubstr("r1d_queue_wait_seconds_sum 0.25"));
  EXPECT_THAT(text, HasSubstr("r1d_time_to_first_token_seconds_sum 0.5"));
  EXPECT_THAT(text, HasSubstr("r1d_inter_token_latency_seconds_count 2"));
  EXPECT_THAT(text, HasSubstr("r1d_inter_token_latency_seconds_sum 1\n"));
  EXPECT_THAT(text, HasSubstr("r1d_time_per_output_token_seconds_sum 0.5"));
  EXPECT_THAT(text, HasSubstr("r1d_prefill_seconds_sum 0.25"));
  EXPECT_THAT(text, HasSubstr("r1d_decode_seconds_sum 1\n"));
  EXPECT_THAT(text, HasSubstr("r1d_inference_seconds_sum 1.25"));
  EXPECT_THAT(text, HasSubstr("r1d_output_mean_logprob_sum -1\n"));
  EXPECT_THAT(text, HasSubstr("r1d_tokens_total{kind=\"prompt\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("r1d_tokens_total{kind=\"output\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("r1d_request_sequences_sum 1\n"));
  EXPECT_THAT(text, HasSubstr("r1d_longest_output_tokens_sum 3\n"));
  EXPECT_THAT(behind->stream().tokens, ::testing::ElementsAre(500, 750, 1500));
  EXPECT_EQ(behind->stream().started, arrival + milliseconds(250));
  EXPECT_EQ(behind->stream().finishes.size(), 1U);
}

TEST(MeteredSinkTest, HasNoConfidenceWhereATokensLogprobIsNotKnown) {
  telemetry::Registry registry;
  telemetry::EngineMetrics metrics(registry);
  const TimePoint arrival = ManualClock().now();
  auto behind = std::make_shared<RecordingSink>();
  MeteredSink sink(make_request(1, counting_prompt(5), 2, behind, arrival), metrics);
  TokenEvent known;
  known.token.logprob = -1;
  known.time = arrival;
  sink.on_token(known);
  TokenEvent unknown;
  unknown.time = arrival;
  sink.on_token(unknown);
  FinishEvent finish;
  finish.num_output_tokens = 2;
  sink.on_finish(finish);
  EXPECT_THAT(registry.render(), HasSubstr("r1d_output_mean_logprob_count 0\n"));
}

TEST(MeteredSinkTest, CountsTheLongestOfARequestsSequencesOnce) {
  telemetry::Registry registry;
  telemetry::EngineMetrics metrics(registry);
  const TimePoint arrival = ManualClock().now();
  Request request = make_request(1, counting_prompt(5), 9, nullptr, arrival);
  request.n = 3;
  request.sink = std::make_shared<RecordingSink>(3);
  MeteredSink sink(request, metrics);
  for (const auto& [index, tokens] : {std::pair{0, 4}, {1, 7}, {2, 5}}) {
    EXPECT_THAT(registry.render(), HasSubstr("r1d_longest_output_tokens_count 0\n"));
    FinishEvent finish;
    finish.index = index;
    finish.num_output_tokens = tokens;
    sink.on_finish(finish);
  }
  EXPECT_THAT(registry.render(), HasSubstr("r1d_longest_output_tokens_sum 7\n"));
  EXPECT_THAT(registry.render(), HasSubstr("r1d_longest_output_tokens_count 1\n"));
}

}  // namespace
}  // namespace r1d::scheduler
