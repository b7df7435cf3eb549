// SPDX-License-Identifier: Apache-2.0
#include "telemetry/dialects.h"

#include <thread>

#include <gtest/gtest.h>

#include "r1d/telemetry/metrics.h"

#include "tests/telemetry/exposition.h"

namespace r1d::telemetry {
namespace {

const ModelLabels kModel{.name = "deepseek-r1",
                         .quantization = "fp8_e4m3",
                         .devices = {"cuda:0", "cuda:1"},
                         .block_size = 64,
                         .num_blocks = 1000,
                         .cache_dtype = "bf16",
                         .prefix_cache = true};

// A series of the vLLM dialect, with more labels before and after its own two, which are sorted.
std::string vllm(const std::string& name,
                 const std::string& before = "",
                 const std::string& after = "") {
  return "vllm:" + name + "{engine=\"0\"," + before + "model_name=\"deepseek-r1\"" + after + "}";
}

struct Loaded {
  Loaded() { registry.add_dialects(kModel); }
  Registry registry;
  EngineMetrics engine{registry};
  TransportMetrics transport{registry};
};

TEST(DialectsTest, AreThereFromWhenTheModelIsLoaded) {
  Registry registry;
  const EngineMetrics engine(registry);
  EXPECT_FALSE(parse_exposition(registry.render()).contains("vllm:num_requests_running"));
  registry.add_dialects(kModel);
  EXPECT_EQ(sample(registry.render(), vllm("num_requests_running")), 0);
}

TEST(DialectsTest, HaveASourceForEveryView) {
  Loaded loaded;
  const Exposition families = parse_exposition(loaded.registry.render());
  const Dialects dialects(kModel);
  for (const View& view : dialects.views()) {
    ASSERT_TRUE(families.contains(view.source)) << view.name << ": " << view.source;
    EXPECT_TRUE(families.contains(view.name)) << view.name;
    EXPECT_STRNE(view.help, "") << view.name;
  }
}

TEST(DialectsTest, ShowWhatPickersAndAutoscalersRead) {
  Loaded loaded;
  loaded.engine.gauges(
      {.waiting = 4, .running = 2, .blocks_total = 100, .blocks_used = 30, .blocks_cached = 20});
  const std::string text = loaded.registry.render();
  EXPECT_EQ(sample(text, vllm("num_requests_waiting")), 4);
  EXPECT_EQ(sample(text, vllm("num_requests_running")), 2);
  EXPECT_EQ(sample(text, vllm("kv_cache_usage_perc")), 0.3);
  EXPECT_EQ(sample(text,
                   "vllm:cache_config_info{block_size=\"64\",cache_dtype=\"bf16\","
                   "enable_prefix_caching=\"True\",engine=\"0\",kv_cache_size_tokens=\"64000\","
                   "model_name=\"deepseek-r1\",num_gpu_blocks=\"1000\"}"),
            1);
}

TEST(DialectsTest, ShowNoUseOfACacheThatIsNotThereYet) {
  Loaded loaded;
  EXPECT_EQ(sample(loaded.registry.render(), vllm("kv_cache_usage_perc")), 0);
}

TEST(DialectsTest, MapFinishReasons) {
  Loaded loaded;
  for (const char* reason : {"stop", "length", "length", "cancelled", "deadline", "error"})
    loaded.engine.finished({.reason = reason});
  const std::string text = loaded.registry.render();
  const auto finished = [&](const std::string& reason) {
    return sample(text, vllm("request_success_total", "finished_reason=\"" + reason + "\","));
  };
  EXPECT_EQ(finished("stop"), 1);
  EXPECT_EQ(finished("length"), 2);
  EXPECT_EQ(finished("abort"), 2);
  EXPECT_EQ(finished("error"), 1);
}

TEST(DialectsTest, CountTokensAndRefusals) {
  Loaded loaded;
  loaded.engine.first_token(0.5, 300);
  loaded.engine.next_token(0.1);
  loaded.engine.refused();
  const std::string text = loaded.registry.render();
  EXPECT_EQ(sample(text, vllm("prompt_tokens_total")), 300);
  EXPECT_EQ(sample(text, vllm("generation_tokens_total")), 2);
  EXPECT_EQ(sample(text, vllm("admission_rejections_total", "", ",reason=\"max_num_queued_reqs\"")),
            1);
}

TEST(DialectsTest, CutHistogramsToTheirOwnBoundsExactly) {
  Loaded loaded;
  for (const double gap : {.0015, .009, .024, .026, .9, 90.0}) loaded.engine.next_token(gap);
  const std::string text = loaded.registry.render();
  const auto at_most = [&](const std::string& bound) {
    return sample(text, vllm("inter_token_latency_seconds_bucket", "", ",le=\"" + bound + "\""));
  };
  EXPECT_EQ(at_most("0.01"), 2);
  EXPECT_EQ(at_most("0.025"), 3);
  EXPECT_EQ(at_most("0.05"), 4);
  EXPECT_EQ(at_most("1"), 5);
  EXPECT_EQ(at_most("80"), 5);
  EXPECT_EQ(at_most("+Inf"), 6);
  EXPECT_EQ(sample(text, vllm("inter_token_latency_seconds_count")), 6);
  EXPECT_EQ(sample(text, vllm("inter_token_latency_seconds_sum")),
            sample(text, "r1d_inter_token_latency_seconds_sum"));
}

TEST(DialectsTest, NameTheDevicesAndTheDtype) {
  Loaded loaded;
  loaded.engine.finished({.reason = "stop", .e2e_seconds = 3});
  loaded.engine.queue_wait(0.25);
  loaded.engine.step_begins();
  const std::string text = loaded.registry.render();
  EXPECT_EQ(sample(text, "deepseek_inference_latency_seconds_sum{quantization=\"fp8_e4m3\"}"), 3);
  EXPECT_EQ(sample(text, "queue_wait_time_sum"), 0.25);
  for (const char* device : {"cuda:0", "cuda:1"}) {
    const double busy =
        sample(text, std::string("deepseek_gpu_utilization{device=\"") + device + "\"}");
    EXPECT_GT(busy, 0);
    EXPECT_LE(busy, 1);
  }
}

TEST(DialectsTest, MayAppearWhileOthersScrape) {
  Registry registry;
  const EngineMetrics engine(registry);
  std::thread scraper([&] {
    for (int i = 0; i < 20; ++i) EXPECT_FALSE(registry.render().empty());
  });
  registry.add_dialects(kModel);
  scraper.join();
  EXPECT_TRUE(parse_exposition(registry.render()).contains("vllm:num_requests_waiting"));
}

}  // namespace
}  // namespace r1d::telemetry
