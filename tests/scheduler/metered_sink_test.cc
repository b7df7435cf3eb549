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
    event.time = arrival + milliseconds(ms);
    sink.on_token(std::move(event));
  }
  FinishEvent finish;
  finish.reason = FinishReason::kLength;
  finish.num_prompt_tokens = 5;
  finish.num_output_tokens = 3;
  finish.arrival = arrival;
  finish.first_token = arrival + milliseconds(500);
  finish.time = arrival + milliseconds(2000);
  sink.on_finish(finish);

  const std::string text = registry.render();
  EXPECT_THAT(text, HasSubstr("r1d_queue_wait_seconds_sum 0.25"));
  EXPECT_THAT(text, HasSubstr("r1d_time_to_first_token_seconds_sum 0.5"));
  EXPECT_THAT(text, HasSubstr("r1d_inter_token_latency_seconds_count 2"));
  EXPECT_THAT(text, HasSubstr("r1d_inter_token_latency_seconds_sum 1\n"));
  EXPECT_THAT(text, HasSubstr("r1d_time_per_output_token_seconds_sum 0.5"));
  EXPECT_THAT(behind->stream().tokens, ::testing::ElementsAre(500, 750, 1500));
  EXPECT_EQ(behind->stream().started, arrival + milliseconds(250));
  EXPECT_EQ(behind->stream().finishes.size(), 1U);
}

}  // namespace
}  // namespace r1d::scheduler
