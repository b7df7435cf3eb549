// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <ctime>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {
namespace {

#ifdef R1D_SANITIZED
constexpr double kMostMicroseconds = 5'000;
#else
constexpr double kMostMicroseconds = 50;  // it takes about 20; a scan of what waits, thousands
#endif

// Processor time of this thread: tests share their cores.
double thread_microseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

class CountingSink final : public OutputSink {
 public:
  void on_token(TokenEvent /*event*/) override { ++num_tokens; }
  void on_finish(const FinishEvent& /*event*/) override {}
  int64_t num_tokens = 0;
};

constexpr int32_t kRunning = 256;

// One step of kRunning sequences, the engine's part left out.
double step_microseconds(Scheduler& scheduler, const Clock& clock) {
  const double begin = thread_microseconds();
  EXPECT_EQ(scheduler.plan(clock.now()).kind, Decision::Kind::kRun);
  const double planned = thread_microseconds();
  EXPECT_EQ(scheduler.batch().size(), static_cast<size_t>(kRunning));
  engine::StepOutput output;
  output.tokens.resize(scheduler.batch().size());
  for (engine::SampledToken& token : output.tokens) token.token = 7;
  const double resumed = thread_microseconds();
  scheduler.commit(std::move(output), clock.now());
  return planned - begin + thread_microseconds() - resumed;
}

TEST(SchedulerCostTest, PlanAndCommitOf256RunningSequencesAreCheap) {
  constexpr int32_t kWaiting = 10'000;
  constexpr int32_t kRounds = 8;  // the best one counts: neighbours on the machine slow some down
  constexpr int32_t kSteps = 250;
  SchedulerOptions options;
  options.max_batch_size = kRunning;
  options.max_model_len = 8192;
  options.max_waiting_requests = kRunning + kWaiting;
  options.num_blocks = kRunning * 8192 / options.block_size;
  Scheduler scheduler(options);
  ManualClock clock;
  auto sink = std::make_shared<CountingSink>();
  for (RequestId id = 1; id <= kRunning + kWaiting; ++id) {
    const std::vector<TokenId> prompt = counting_prompt(100, static_cast<TokenId>(id));
    ASSERT_TRUE(scheduler.add(make_request(id, prompt, 4000, sink, clock.now()), clock.now()).ok());
  }
  double best = std::numeric_limits<double>::infinity();
  for (int32_t round = 0; round < kRounds; ++round) {
    double in_scheduler = 0;
    for (int32_t step = 0; step < kSteps; ++step)
      in_scheduler += step_microseconds(scheduler, clock);
    best = std::min(best, in_scheduler / kSteps);
  }
  EXPECT_EQ(sink->num_tokens, int64_t{kRunning} * kRounds * kSteps);
  fmt::print("{:.1f} us a step for {} running, {} waiting\n", best, kRunning, kWaiting);
  EXPECT_LT(best, kMostMicroseconds);
}

}  // namespace
}  // namespace r1d::scheduler
