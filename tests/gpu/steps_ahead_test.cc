// SPDX-License-Identifier: Apache-2.0
// The engine takes the next step before the tokens of one are known, and gives the same tokens.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "r1d/base/clock.h"
#include "r1d/base/random.h"
#include "r1d/base/status.h"
#include "r1d/checkpoint/weight_source.h"
#include "r1d/device/gpu_info.h"
#include "r1d/engine/engine.h"
#include "r1d/scheduler/scheduler.h"

#include "tests/support/test_data.h"

namespace r1d::engine {
namespace {

constexpr int32_t kBlockSize = 64;
constexpr int32_t kBatch = 5;

size_t gpu_count() {
  const auto gpus = device::list_gpus();
  return gpus.ok() ? gpus->size() : 0;
}

class Tokens final : public scheduler::OutputSink {
 public:
  void on_token(scheduler::TokenEvent event) override { tokens.push_back(event.token.token); }
  void on_finish(const scheduler::FinishEvent& event) override { status = event.status; }
  std::vector<TokenId> tokens;
  absl::Status status;
};

class StepsAheadTest : public ::testing::Test {
 protected:
  void make_engine(int32_t world_size) {
    source_ = checkpoint::open_hugging_face(test::data("golden/v3-ragged-fp8")).value();
    const LoadFraction no_report = [](double) { return absl::OkStatus(); };
    // Deterministic: who else is in a step must not matter, and that differs.
    auto engine = Engine::create(*source_,
                                 {.device = Device::kCuda,
                                  .world_size = world_size,
                                  .kv_cache_dtype = DType::kBF16,
                                  .kv_cache_bytes = 64 << 20,
                                  .block_size = kBlockSize,
                                  .max_model_len = 256,
                                  .max_num_batched_tokens = 128,
                                  .max_batch_size = kBatch,
                                  .deterministic = true},
                                 static_cast<TokenId>(source_->config().vocab_size - 1),
                                 no_report);
    ASSERT_TRUE(engine.ok()) << message_of(engine.status());
    engine_ = *std::move(engine);
  }

  // Requests of different lengths, more than fit a step: sequences come and go in all places.
  scheduler::Request request(RequestId id, std::shared_ptr<Tokens> sink) {
    scheduler::Request request;
    request.id = id;
    const auto vocab = static_cast<uint64_t>(source_->config().vocab_size);
    for (uint64_t i = 0; i < 3 + 11 * id; ++i) {
      request.prompt.push_back(static_cast<TokenId>(base::random_bits(id, i) % vocab));
    }
    request.sampling.temperature = id % 2 == 0 ? 0 : 0.8;
    request.sampling.seed = id;
    request.sampling.num_logprobs = id % 3 == 0 ? 4 : -1;
    request.sampling.repetition_penalty = id == 7 ? 1.2 : 1;
    request.sampling.max_tokens = static_cast<int32_t>(9 + 7 * id);
    request.arrival = clock_.now();
    request.sink = std::move(sink);
    return request;
  }

  std::vector<std::vector<TokenId>> run(int32_t ahead) {
    scheduler::Scheduler scheduler({.max_batch_size = kBatch,
                                    .max_num_batched_tokens = 128,
                                    .max_model_len = 256,
                                    .block_size = kBlockSize,
                                    .num_blocks = engine_->cache().num_blocks});
    std::vector<std::shared_ptr<Tokens>> sinks;
    for (RequestId id = 1; id <= 9; ++id) {
      sinks.push_back(std::make_shared<Tokens>());
      EXPECT_TRUE(scheduler.add(request(id, sinks.back()), clock_.now()).ok());
    }
    num_ahead_ = 0;
    while (!scheduler.idle() || scheduler.num_in_flight() > 0) {
      if (scheduler.plan(clock_.now()).kind == scheduler::Decision::Kind::kRun) {
        const absl::Status started = engine_->start(scheduler.batch());
        EXPECT_TRUE(started.ok()) << message_of(started);
        if (!started.ok()) break;
        if (scheduler.num_in_flight() > 1) ++num_ahead_;
        if (scheduler.num_in_flight() <= ahead) continue;
      }
      auto output = engine_->finish();
      EXPECT_TRUE(output.ok()) << message_of(output.status());
      if (!output.ok()) break;
      scheduler.commit(*std::move(output), clock_.now());
    }
    std::vector<std::vector<TokenId>> tokens;
    for (const auto& sink : sinks) {
      EXPECT_TRUE(sink->status.ok()) << message_of(sink->status);
      tokens.push_back(sink->tokens);
    }
    return tokens;
  }

  void expect_same_tokens() {
    ASSERT_EQ(engine_->steps_ahead(), 1);
    const auto one_by_one = run(0);
    EXPECT_EQ(num_ahead_, 0);
    EXPECT_EQ(run(1), one_by_one);
    EXPECT_GT(num_ahead_, 30);
  }

  const SteadyClock clock_;
  std::unique_ptr<checkpoint::WeightSource> source_;
  std::unique_ptr<Engine> engine_;
  int32_t num_ahead_ = 0;
};

TEST_F(StepsAheadTest, GiveTheTokensOfStepsOneByOne) {
  if (gpu_count() < 1) GTEST_SKIP() << "needs a GPU";
  make_engine(1);
  ASSERT_NE(engine_, nullptr);
  expect_same_tokens();
}

TEST_F(StepsAheadTest, GiveTheTokensOfStepsOneByOneOnTwoGpus) {
  if (gpu_count() < 2) GTEST_SKIP() << "needs two GPUs";
  make_engine(2);
  ASSERT_NE(engine_, nullptr);
  expect_same_tokens();
}

}  // namespace
}  // namespace r1d::engine
