// SPDX-License-Identifier: Apache-2.0
#include "r1d/telemetry/metrics.h"

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/telemetry/exposition.h"

namespace r1d::telemetry {
namespace {

class TestClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const override { return now_; }
  void advance(int64_t seconds) { now_ += std::chrono::seconds(seconds); }

 private:
  TimePoint now_{std::chrono::hours(1)};
};

struct AllMetrics {
  Registry registry;
  EngineMetrics engine{registry};
  TransportMetrics transport{registry};
  StartupMetrics startup{registry, "1.2.3"};
};

TEST(MetricsTest, ShowEverySeriesWithZerosBeforeAnyEvent) {
  AllMetrics metrics;
  const std::string text = metrics.registry.render();
  for (const char* reason : {"stop", "length", "cancelled", "deadline", "error", "other"}) {
    EXPECT_EQ(sample(text, std::string("r1d_finished_total{reason=\"") + reason + "\"}"), 0);
  }
  for (const char* kind : {"prefill", "decode", "prompt", "cached", "output"}) {
    EXPECT_EQ(sample(text, std::string("r1d_tokens_total{kind=\"") + kind + "\"}"), 0);
  }
  for (const char* state : {"used", "cached", "free"}) {
    EXPECT_EQ(sample(text, std::string("r1d_kv_blocks{state=\"") + state + "\"}"), 0);
  }
  for (const char* method : {"Generate",
                             "GenerateOnce",
                             "Chat",
                             "ChatOnce",
                             "Tokenize",
                             "Detokenize",
                             "GetModel",
                             "GetServerInfo",
                             "other"}) {
    EXPECT_EQ(sample(text, std::string("r1d_rpc_seconds_count{method=\"") + method + "\"}"), 0);
    EXPECT_EQ(sample(text, std::string("r1d_rpc_total{code=\"OK\",method=\"") + method + "\"}"), 0);
  }
  EXPECT_EQ(parse_exposition(text)["r1d_rpc_total"].samples.size(), 9U * 18U);
  EXPECT_EQ(sample(text, "r1d_time_to_first_token_seconds_count"), 0);
  EXPECT_EQ(sample(text, "r1d_ready"), 0);
  EXPECT_EQ(sample(text, "r1d_live"), 1);
  EXPECT_EQ(sample(text, "r1d_build_info{version=\"1.2.3\"}"), 1);
}

TEST(MetricsTest, KeepTheNumberOfSeriesUnderAnyLabelValue) {
  AllMetrics metrics;
  const size_t before = count_series(metrics.registry.render());
  for (int i = 0; i < 500; ++i) {
    const std::string invented = "invented-" + std::to_string(i);
    metrics.transport.started(invented.c_str());
    metrics.transport.request(invented.c_str(), invented.c_str(), 0.1);
    metrics.engine.finished({.reason = invented.c_str()});
  }
  const std::string text = metrics.registry.render();
  EXPECT_EQ(count_series(text), before);
  EXPECT_EQ(sample(text, "r1d_rpc_total{code=\"other\",method=\"other\"}"), 500);
  EXPECT_EQ(sample(text, "r1d_finished_total{reason=\"other\"}"), 500);
}

TEST(MetricsTest, CountAStep) {
  AllMetrics metrics;
  metrics.engine.step(3, 100, 2, 0.0045);
  metrics.engine.step(2, 0, 2, 0.002);
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_step_tokens_sum"), 104);
  EXPECT_EQ(sample(text, "r1d_step_tokens_bucket{le=\"2\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_step_sequences_sum"), 5);
  EXPECT_EQ(sample(text, "r1d_step_seconds_count"), 2);
  EXPECT_EQ(sample(text, "r1d_step_seconds_bucket{le=\"0.004\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"prefill\"}"), 100);
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"decode\"}"), 4);
}

TEST(MetricsTest, TurnTotalsIntoCounters) {
  AllMetrics metrics;
  metrics.engine.gauges({.waiting = 4,
                         .running = 2,
                         .blocks_total = 100,
                         .blocks_used = 30,
                         .blocks_cached = 20,
                         .prefix_queries = 1000,
                         .prefix_hits = 640,
                         .preemptions = 1});
  metrics.engine.gauges({.waiting = 1,
                         .running = 3,
                         .blocks_total = 100,
                         .blocks_used = 40,
                         .blocks_cached = 10,
                         .prefix_queries = 1500,
                         .prefix_hits = 640,
                         .preemptions = 3});
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_requests_waiting"), 1);
  EXPECT_EQ(sample(text, "r1d_requests_running"), 3);
  EXPECT_EQ(sample(text, "r1d_kv_blocks{state=\"used\"}"), 40);
  EXPECT_EQ(sample(text, "r1d_kv_blocks{state=\"cached\"}"), 10);
  EXPECT_EQ(sample(text, "r1d_kv_blocks{state=\"free\"}"), 50);
  EXPECT_EQ(sample(text, "r1d_prefix_cache_queries_total"), 1500);
  EXPECT_EQ(sample(text, "r1d_prefix_cache_hits_total"), 640);
  EXPECT_EQ(sample(text, "r1d_preemptions_total"), 3);
}

TEST(MetricsTest, CountAFinishedSequenceOnce) {
  AllMetrics metrics;
  metrics.engine.finished({.reason = "length",
                           .e2e_seconds = 90,
                           .phases = {{.prefill_seconds = 2, .decode_seconds = 82}},
                           .tpot_seconds = 0.02,
                           .mean_logprob = -0.25,
                           .prompt_tokens = 300,
                           .cached_tokens = 128,
                           .output_tokens = 4096});
  metrics.engine.finished({.reason = "stop", .e2e_seconds = 1, .output_tokens = 1});
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_finished_total{reason=\"length\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_finished_total{reason=\"stop\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_request_seconds_sum"), 91);
  EXPECT_EQ(sample(text, "r1d_prefill_seconds_sum"), 2);
  EXPECT_EQ(sample(text, "r1d_decode_seconds_sum"), 82);
  EXPECT_EQ(sample(text, "r1d_inference_seconds_sum"), 84);
  EXPECT_EQ(sample(text, "r1d_inference_seconds_count"), 1) << "the other named no phases";
  EXPECT_EQ(sample(text, "r1d_output_mean_logprob_count"), 1) << "the other's is not known";
  EXPECT_EQ(sample(text, "r1d_output_mean_logprob_bucket{le=\"-0.3\"}"), 0);
  EXPECT_EQ(sample(text, "r1d_output_mean_logprob_bucket{le=\"-0.2\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_time_per_output_token_seconds_count"), 1) << "one token has no gap";
  EXPECT_EQ(sample(text, "r1d_prompt_tokens_sum"), 300);
  EXPECT_EQ(sample(text, "r1d_output_tokens_sum"), 4097);
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"cached\"}"), 128);
}

TEST(MetricsTest, CountTokensAsTheyCome) {
  AllMetrics metrics;
  metrics.engine.first_token(0.5, 300);
  metrics.engine.next_token(0.1);
  metrics.engine.next_token(0.1);
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"prompt\"}"), 300);
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"output\"}"), 3);
  EXPECT_EQ(sample(text, "r1d_time_to_first_token_seconds_sum"), 0.5);
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_count"), 2);
}

TEST(MetricsTest, CountWhatRequestsAskForAndWhatWasRefused) {
  AllMetrics metrics;
  metrics.engine.accepted(4, 1000);
  metrics.engine.refused();
  metrics.engine.refused();
  metrics.engine.request_finished(812);
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_request_sequences_sum"), 4);
  EXPECT_EQ(sample(text, "r1d_request_max_tokens_sum"), 1000);
  EXPECT_EQ(sample(text, "r1d_requests_refused_total"), 2);
  EXPECT_EQ(sample(text, "r1d_longest_output_tokens_sum"), 812);
}

TEST(MetricsTest, TellTheShareOfTheLastMinuteThatStepsTook) {
  TestClock clock;
  Registry registry(clock);
  EngineMetrics engine(registry);
  const auto ratio = [&] { return sample(registry.render(), "r1d_engine_busy_ratio"); };
  EXPECT_EQ(ratio(), 0);
  engine.step_begins();
  clock.advance(10);
  EXPECT_EQ(ratio(), 1) << "the step in flight counts";
  clock.advance(5);
  engine.step(1, 0, 1, 15);
  clock.advance(15);
  EXPECT_DOUBLE_EQ(ratio(), 0.5) << "15 of 30 seconds";
  clock.advance(30);
  EXPECT_DOUBLE_EQ(ratio(), 0.25) << "15 of 60 seconds";
  clock.advance(30);
  EXPECT_DOUBLE_EQ(ratio(), 0) << "more than a minute ago";
}

TEST(MetricsTest, TellTheRateOfCallsOverTheLastMinute) {
  TestClock clock;
  Registry registry(clock);
  TransportMetrics transport(registry);
  const auto rate = [&] {
    return sample(registry.render(), "deepseek_request_rate{service=\"Chat\"}");
  };
  clock.advance(10);
  for (int i = 0; i < 30; ++i) transport.started("Chat");
  EXPECT_DOUBLE_EQ(rate(), 3);
  clock.advance(50);
  EXPECT_DOUBLE_EQ(rate(), 0.5);
  clock.advance(3600);
  EXPECT_EQ(rate(), 0);
  EXPECT_EQ(sample(registry.render(), "r1d_rpc_started_total{method=\"Chat\"}"), 30);
}

TEST(MetricsTest, TellTokenGapsApartFromOneMillisecondOn) {
  AllMetrics metrics;
  for (const double gap : {.0008, .0018, .0028, .0101}) metrics.engine.next_token(gap);
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_bucket{le=\"0.001\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_bucket{le=\"0.002\"}"), 2);
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_bucket{le=\"0.003\"}"), 3);
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_bucket{le=\"0.0125\"}"), 4);
}

TEST(MetricsTest, HoldAnHourWithinTheBuckets) {
  AllMetrics metrics;
  metrics.engine.queue_wait(3599);
  metrics.engine.first_token(3599, 1);
  metrics.engine.finished({.reason = "stop", .e2e_seconds = 3599});
  metrics.transport.request("Generate", "OK", 3599);
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_queue_wait_seconds_bucket{le=\"3600\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_time_to_first_token_seconds_bucket{le=\"3600\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_request_seconds_bucket{le=\"3600\"}"), 1);
  EXPECT_EQ(sample(text, "r1d_rpc_seconds_bucket{method=\"Generate\",le=\"3600\"}"), 1);
}

TEST(MetricsTest, FollowStreamsAndStartUp) {
  AllMetrics metrics;
  metrics.transport.streams_open(+1);
  metrics.transport.streams_open(+1);
  metrics.transport.streams_open(-1);
  metrics.transport.slow_consumer();
  metrics.startup.load_progress(0.5);
  metrics.startup.load_seconds(12.5);
  metrics.startup.ready(true);
  std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_streams_open"), 1);
  EXPECT_EQ(sample(text, "r1d_slow_consumers_total"), 1);
  EXPECT_EQ(sample(text, "r1d_load_progress_ratio"), 0.5);
  EXPECT_EQ(sample(text, "r1d_load_seconds"), 12.5);
  EXPECT_EQ(sample(text, "r1d_ready"), 1);
  metrics.startup.ready(false);
  metrics.startup.live(false);
  text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_ready"), 0);
  EXPECT_EQ(sample(text, "r1d_live"), 0);
}

TEST(MetricsTest, NameAndDescribeEveryFamilyByTheRules) {
  AllMetrics metrics;
  for (const auto& [name, family] : parse_exposition(metrics.registry.render())) {
    EXPECT_TRUE(name.starts_with("r1d_") || name.starts_with("process_") ||
                name.starts_with("deepseek_"))
        << name;
    EXPECT_EQ(family.type == "counter", name.ends_with("_total")) << name << " " << family.type;
    EXPECT_FALSE(family.help.empty()) << name;
    EXPECT_FALSE(family.samples.empty()) << name;
    EXPECT_THAT(name, testing::Not(testing::HasSubstr("_ms"))) << "base units only";
  }
}

TEST(MetricsTest, AreSafeToUseFromManyThreadsWhileRendered) {
  AllMetrics metrics;
  constexpr int kThreads = 4;
  constexpr int kRounds = 2000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&metrics] {
      for (int round = 0; round < kRounds; ++round) {
        metrics.engine.step_begins();
        metrics.engine.step(1, 0, 1, 0.01);
        metrics.engine.gauges({.prefix_queries = 7});
        metrics.engine.next_token(0.01);
        metrics.transport.request("Generate", "OK", 0.1);
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(metrics.registry.render().empty());
  for (std::thread& thread : threads) thread.join();
  const std::string text = metrics.registry.render();
  EXPECT_EQ(sample(text, "r1d_tokens_total{kind=\"decode\"}"), kThreads * kRounds);
  EXPECT_EQ(sample(text, "r1d_inter_token_latency_seconds_count"), kThreads * kRounds);
  EXPECT_EQ(sample(text, "r1d_rpc_total{code=\"OK\",method=\"Generate\"}"), kThreads * kRounds);
  EXPECT_EQ(sample(text, "r1d_prefix_cache_queries_total"), 7);
}

}  // namespace
}  // namespace r1d::telemetry
