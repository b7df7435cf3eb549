// SPDX-License-Identifier: Apache-2.0
// Steps that are planned and started behind one in flight.
#include <deque>
#include <future>
#include <map>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/scheduler/step_loop.h"

#include "tests/scheduler/fakes.h"
#include "tests/scheduler/shadow_executor.h"

namespace r1d::scheduler {
namespace {

using Kind = Decision::Kind;

class StepsAheadTest : public ::testing::Test {
 protected:
  StepsAheadTest() {
    options_.max_batch_size = 4;
    options_.max_num_batched_tokens = 32;
    options_.max_model_len = 64;
    options_.block_size = 4;
    options_.num_blocks = 32;
    reset();
  }
  void reset() {
    scheduler_ = std::make_unique<Scheduler>(options_);
    executor_ = std::make_unique<ShadowExecutor>(options_, model_, /*steps_ahead=*/1);
  }
  std::shared_ptr<RecordingSink> add(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    request.sink = sink;
    EXPECT_TRUE(scheduler_->add(std::move(request), clock_.now()).ok());
    return sink;
  }
  std::shared_ptr<RecordingSink> add(RequestId id, int32_t prompt, int32_t max_tokens) {
    return add(make_request(id, counting_prompt(prompt), max_tokens, nullptr, clock_.now()));
  }
  Kind plan() {
    const Kind kind = scheduler_->plan(clock_.now()).kind;
    scheduler_->check_invariants();
    if (kind != Kind::kRun) return kind;
    follows_.clear();
    for (const engine::SequenceStep& step : scheduler_->batch()) {
      follows_[step.sequence] = step.follows;
    }
    const absl::Status started = executor_->start(scheduler_->batch());
    EXPECT_TRUE(started.ok()) << started;
    return kind;
  }
  void commit() {
    auto output = executor_->finish();
    ASSERT_TRUE(output.ok()) << output.status();
    scheduler_->commit(*std::move(output), clock_.now());
    scheduler_->check_invariants();
  }
  // Past the prefill, which nothing is planned behind.
  void prefill() {
    ASSERT_EQ(plan(), Kind::kRun);
    EXPECT_EQ(plan(), Kind::kCommitFirst);
    commit();
  }

  SchedulerOptions options_;
  FakeModel model_;
  ManualClock clock_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ShadowExecutor> executor_;
  std::map<SequenceId, int32_t> follows_;  // of the step planned last
};

TEST_F(StepsAheadTest, ADecodeFollowsTheRowThatSamplesItsToken) {
  const auto first = add(1, 3, 5);
  const auto second = add(2, 3, 5);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(follows_, (std::map<SequenceId, int32_t>{{1, -1}, {2, -1}}));
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(follows_, (std::map<SequenceId, int32_t>{{1, 0}, {2, 1}}));
  EXPECT_EQ(scheduler_->num_in_flight(), 2);
  commit();
  EXPECT_EQ(first->stream().tokens.size(), 2U);
  ASSERT_EQ(plan(), Kind::kRun);
  while (scheduler_->num_in_flight() > 0) {
    commit();
    if (scheduler_->num_in_flight() < 2) plan();
  }
  EXPECT_EQ(first->stream().tokens, tokens_alone(model_, counting_prompt(3), 1, 5));
  EXPECT_EQ(second->stream().tokens, tokens_alone(model_, counting_prompt(3), 2, 5));
}

TEST_F(StepsAheadTest, WhoGetsItsLastTokenIsLeftOut) {
  add(1, 3, 2);
  add(2, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(follows_, (std::map<SequenceId, int32_t>{{2, 1}}));
}

TEST_F(StepsAheadTest, WhereAllGetTheirLastTokenNothingIsPlanned) {
  const auto sink = add(1, 3, 2);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(plan(), Kind::kCommitFirst);
  commit();
  EXPECT_TRUE(sink->finished());
  EXPECT_EQ(plan(), Kind::kIdle);
}

TEST_F(StepsAheadTest, ANewRequestJoinsBehindAStepInFlight) {
  add(1, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  add(2, 3, 9);
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(follows_, (std::map<SequenceId, int32_t>{{1, 0}, {2, -1}}));
  commit();
  EXPECT_EQ(plan(), Kind::kCommitFirst) << "behind its prefill nothing is planned";
}

TEST_F(StepsAheadTest, SamplingThatLooksBackWaitsForItsTokens) {
  Request request = make_request(1, counting_prompt(3), 9, nullptr, clock_.now());
  request.sampling.repetition_penalty = 1.1;
  add(std::move(request));
  add(2, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(plan(), Kind::kCommitFirst);
  commit();
  EXPECT_EQ(plan(), Kind::kRun);
}

TEST_F(StepsAheadTest, NobodyIsPreemptedForAStepAhead) {
  options_.max_model_len = 16;
  options_.num_blocks = 6;
  options_.prefix_cache = false;
  reset();
  add(1, 7, 3);  // takes the sixth block for its second decode, and ends with that
  add(2, 10, 6);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  ASSERT_EQ(plan(), Kind::kRun);
  commit();
  EXPECT_EQ(plan(), Kind::kCommitFirst) << "a fourth block comes when the first request has ended";
  commit();
  EXPECT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(scheduler_->stats().num_preemptions, 0);
}

TEST_F(StepsAheadTest, WhatAStepGivesToOneThatHasEndedIsDropped) {
  const auto cancelled_sink = add(1, 3, 9);
  const auto sink = add(2, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_TRUE(scheduler_->cancel(1, FinishReason::kCancelled, cancelled("left"), clock_.now()));
  scheduler_->check_invariants();
  commit();
  commit();
  EXPECT_EQ(cancelled_sink->stream().tokens.size(), 1U);
  EXPECT_EQ(sink->stream().tokens.size(), 3U);
}

TEST_F(StepsAheadTest, StepsInFlightOutliveTheRequestsTheyServed) {
  const auto sink = add(1, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(scheduler_->cancel_all(FinishReason::kCancelled, cancelled("drained"), clock_.now()),
            1);
  scheduler_->check_invariants();
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(scheduler_->num_in_flight(), 2);
  commit();
  commit();
  EXPECT_EQ(sink->stream().tokens.size(), 1U);
  add(2, 3, 2);
  EXPECT_EQ(plan(), Kind::kRun);
}

TEST_F(StepsAheadTest, AFailureVoidsBothSteps) {
  const auto sink = add(1, 3, 9);
  prefill();
  ASSERT_EQ(plan(), Kind::kRun);
  ASSERT_EQ(plan(), Kind::kRun);
  EXPECT_EQ(scheduler_->fail_step(unavailable("rank 1 is gone"), clock_.now()), 1);
  EXPECT_EQ(scheduler_->num_in_flight(), 0);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(sink->finish().num_output_tokens, 1);
}

// A device that does nothing by itself: counts what it was given before it had to tell.
class Device final : public engine::Executor {
 public:
  int32_t steps_ahead() const override { return 1; }
  absl::Status start(std::span<const engine::SequenceStep> batch) override {
    sizes_.push_back(batch.size());
    if (sizes_.size() == 2 && std::exchange(most_, 2) < 2) two_on_their_way_.set_value();
    most_ = std::max(most_, sizes_.size());
    return absl::OkStatus();
  }
  absl::StatusOr<engine::StepOutput> finish() override {
    if (num_finished_++ == fails_at_) return unavailable("rank 1 is gone");
    engine::StepOutput output;
    output.tokens.resize(sizes_.front());
    for (engine::SampledToken& sampled : output.tokens) sampled.token = 1;
    sizes_.pop_front();
    return output;
  }
  absl::StatusOr<engine::StepOutput> execute(std::span<const engine::SequenceStep>) override {
    return internal_error("steps are started and finished");
  }
  absl::Status recover() override {
    sizes_.clear();
    return absl::OkStatus();
  }
  uint64_t progress() const override { return 0; }

  std::deque<size_t> sizes_;
  size_t most_ = 0;
  std::promise<void> two_on_their_way_;
  int32_t num_finished_ = 0;
  int32_t fails_at_ = -1;
};

class FinishSink final : public OutputSink {
 public:
  void on_token(TokenEvent) override {}
  void on_finish(const FinishEvent& event) override { finish_.set_value(event); }
  FinishEvent wait() { return finish_.get_future().get(); }

 private:
  std::promise<FinishEvent> finish_;
};

class StepLoopAheadTest : public ::testing::Test {
 protected:
  FinishEvent run_one(int32_t max_tokens) {
    StepLoop loop({.max_model_len = 64, .block_size = 64, .num_blocks = 4},
                  device_,
                  metrics_,
                  clock_,
                  [](const absl::Status&) {});
    loop.start();
    const auto sink = std::make_shared<FinishSink>();
    EXPECT_TRUE(
        loop.submit(make_request(1, counting_prompt(4), max_tokens, sink, clock_.now())).ok());
    const FinishEvent finish = sink->wait();
    loop.stop();
    return finish;
  }

  Device device_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics metrics_{registry_};
  ManualClock clock_;
};

TEST_F(StepLoopAheadTest, TheDeviceHasTheNextStepBeforeItIsDoneWithOne) {
  const FinishEvent finish = run_one(8);
  EXPECT_EQ(finish.reason, FinishReason::kLength);
  EXPECT_EQ(finish.num_output_tokens, 8);
  EXPECT_EQ(device_.most_, 2U);
  EXPECT_TRUE(device_.sizes_.empty());
  EXPECT_THAT(registry_.render(), testing::HasSubstr("r1d_step_seconds_count 8"));
}

TEST_F(StepLoopAheadTest, ADrainThatCutsOffLetsStepsOnTheirWayEnd) {
  constexpr int32_t kTokensAtMost = 1'000'000;
  StepLoop loop({.max_model_len = kTokensAtMost + 8, .block_size = 1 << 16, .num_blocks = 32},
                device_,
                metrics_,
                clock_,
                [](const absl::Status& fatal) { FAIL() << fatal; });
  loop.start();
  const auto sink = std::make_shared<FinishSink>();
  ASSERT_TRUE(
      loop.submit(make_request(1, counting_prompt(4), kTokensAtMost, sink, clock_.now())).ok());
  device_.two_on_their_way_.get_future().wait();
  EXPECT_EQ(loop.drain(Duration::zero()), 1);
  EXPECT_EQ(sink->wait().reason, FinishReason::kCancelled);
  loop.stop();
  EXPECT_TRUE(device_.sizes_.empty());
}

TEST_F(StepLoopAheadTest, AStepThatFailsTakesTheOneBehindItAlong) {
  device_.fails_at_ = 3;
  const FinishEvent finish = run_one(8);
  EXPECT_EQ(finish.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(finish.num_output_tokens, 3);
  device_.num_finished_ = 0;
  device_.fails_at_ = -1;
  EXPECT_EQ(run_one(8).num_output_tokens, 8);
}

}  // namespace
}  // namespace r1d::scheduler
