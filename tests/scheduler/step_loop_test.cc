// SPDX-License-Identifier: Apache-2.0
#include "r1d/scheduler/step_loop.h"

#include <functional>
#include <future>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/mutex.h"

#include "tests/scheduler/fakes.h"

namespace r1d::scheduler {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

// A sink that a test waits on. Thread-safe.
class WaitingSink final : public OutputSink {
 public:
  void on_token(TokenEvent /*event*/) override {
    base::MutexLock lock(mu_);
    ++num_tokens_;
    changed_.notify_all();
  }
  void on_finish(const FinishEvent& event) override {
    base::MutexLock lock(mu_);
    finishes_.push_back(event);
    changed_.notify_all();
  }
  void wait_for_token() {
    base::MutexLock lock(mu_);
    while (num_tokens_ == 0) changed_.wait(mu_);
  }
  FinishEvent wait_for_finish() {
    base::MutexLock lock(mu_);
    while (finishes_.empty()) changed_.wait(mu_);
    return finishes_.front();
  }
  [[nodiscard]] int32_t num_tokens() {
    base::MutexLock lock(mu_);
    return num_tokens_;
  }
  [[nodiscard]] size_t num_finishes() {
    base::MutexLock lock(mu_);
    return finishes_.size();
  }

 private:
  base::Mutex mu_;
  base::CondVar changed_;
  int32_t num_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<FinishEvent> finishes_ ABSL_GUARDED_BY(mu_);
};

// Samples token 1 for everyone; a test can hold it inside a step, and make steps fail.
class HeldExecutor final : public engine::Executor {
 public:
  absl::StatusOr<engine::StepOutput> execute(std::span<const engine::SequenceStep> batch) override {
    base::MutexLock lock(mu_);
    ++num_steps_;
    inside_ = true;
    changed_.notify_all();
    while (held_) changed_.wait(mu_);
    inside_ = false;
    if (failure_by_) failure_by_();
    if (!failure_.ok()) return std::exchange(failure_, fails_on_ ? failure_ : absl::OkStatus());
    engine::StepOutput output;
    output.tokens.resize(batch.size());
    for (engine::SampledToken& sampled : output.tokens) sampled.token = 1;
    return output;
  }
  uint64_t progress() const override { return progress_; }

  void hold() {
    base::MutexLock lock(mu_);
    held_ = true;
  }
  void release() {
    base::MutexLock lock(mu_);
    held_ = false;
    changed_.notify_all();
  }
  void wait_until_inside() {
    base::MutexLock lock(mu_);
    while (!inside_) changed_.wait(mu_);
  }
  absl::Status recover() override {
    base::MutexLock lock(mu_);
    ++num_recoveries_;
    return recovery_;
  }

  void fail(absl::Status failure) {
    base::MutexLock lock(mu_);
    failure_ = std::move(failure);
    fails_on_ = true;
  }
  void fail_once(absl::Status failure) {
    base::MutexLock lock(mu_);
    failure_ = std::move(failure);
    fails_on_ = false;
  }
  void fail_to_recover(absl::Status failure) {
    base::MutexLock lock(mu_);
    recovery_ = std::move(failure);
  }
  [[nodiscard]] int num_recoveries() {
    base::MutexLock lock(mu_);
    return num_recoveries_;
  }
  void fail_by(std::function<void()> failure) {
    base::MutexLock lock(mu_);
    failure_by_ = std::move(failure);
  }
  void make_progress() { ++progress_; }

 private:
  base::Mutex mu_;
  base::CondVar changed_;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool inside_ ABSL_GUARDED_BY(mu_) = false;
  int64_t num_steps_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool fails_on_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status recovery_ ABSL_GUARDED_BY(mu_);
  int num_recoveries_ ABSL_GUARDED_BY(mu_) = 0;
  std::function<void()> failure_by_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> progress_{0};
};

constexpr int32_t kEndless = 1'000'000;  // tokens: more than a test waits for

class StepLoopTest : public ::testing::Test {
 protected:
  StepLoopTest() {
    options_.max_batch_size = 4;
    options_.max_num_batched_tokens = 64;
    options_.max_model_len = kEndless + 16;
    options_.max_waiting_requests = 3;
    options_.block_size = 1 << 16;
    options_.num_blocks = 32;
  }
  void make_loop() {
    loop_ = std::make_unique<StepLoop>(
        options_,
        executor_,
        metrics_,
        clock_,
        [this](const absl::Status& status) {
          ++num_fatal_;
          fatal_ = status;
        },
        [this](bool under_way) { recoveries_ += under_way ? '(' : ')'; });
  }
  void start() {
    make_loop();
    loop_->start();
  }
  // Called where a failure would leave the test waiting for ever, hence the check.
  std::shared_ptr<WaitingSink> submit(RequestId id,
                                      int32_t max_tokens,
                                      TimePoint* deadline = nullptr) {
    auto sink = std::make_shared<WaitingSink>();
    Request request = make_request(id, counting_prompt(4), max_tokens, sink, clock_.now());
    if (deadline != nullptr) request.deadline = *deadline;
    const absl::Status status = loop_->submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  // Looks every second of `wait`; what the last look says.
  bool alive_after(seconds wait) {
    bool last = false;
    for (seconds passed{}; passed < wait; ++passed) {
      clock_.advance(seconds(1));
      last = loop_->alive(wait);
    }
    return last;
  }
  absl::Status try_submit(RequestId id) {
    return loop_->submit(
        make_request(id, counting_prompt(4), 1, std::make_shared<WaitingSink>(), clock_.now()));
  }

  SchedulerOptions options_;
  HeldExecutor executor_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics metrics_{registry_};
  ManualClock clock_;
  int32_t num_fatal_ = 0;
  absl::Status fatal_;
  std::string recoveries_;
  std::unique_ptr<StepLoop> loop_;  // last: it uses the rest
};

TEST_F(StepLoopTest, ABoundThatSinksLeavesAloneWhatWaits) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> running = submit(1, 2);
  executor_.wait_until_inside();
  const std::shared_ptr<WaitingSink> first = submit(2, 1);
  const std::shared_ptr<WaitingSink> second = submit(3, 1);
  loop_->set_max_waiting_requests(1);
  EXPECT_THAT(std::string(try_submit(4).message()), HasSubstr("2 requests wait, 1 may"));
  loop_->set_max_waiting_requests(4);
  EXPECT_TRUE(try_submit(4).ok());
  executor_.release();
  for (const auto& sink : {running, first, second}) {
    EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kLength);
  }
}

TEST_F(StepLoopTest, ServesRequestsFromManyThreads) {
  options_.max_waiting_requests = 100;
  start();
  std::vector<std::thread> clients;
  std::atomic<int32_t> num_tokens{0};
  for (RequestId client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (RequestId i = 1; i <= 25; ++i) {
        const std::shared_ptr<WaitingSink> sink = submit(client * 100 + i, 7);
        EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kLength);
        num_tokens += sink->num_tokens();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(num_tokens, 4 * 25 * 7);
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
  EXPECT_EQ(loop_->stats().num_blocks_used, 0);
  EXPECT_THAT(registry_.render(), HasSubstr("r1d_time_to_first_token_seconds_count 100"));
}

TEST_F(StepLoopTest, ACancelTakesEffectAfterTheStepInFlight) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> sink = submit(1, kEndless);
  executor_.wait_until_inside();
  loop_->cancel(1, FinishReason::kCancelled, cancelled("the client left"));
  loop_->cancel(77, FinishReason::kCancelled, cancelled("unknown"));
  executor_.release();
  const FinishEvent finish = sink->wait_for_finish();
  EXPECT_EQ(finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(message_of(finish.status), "the client left");
  EXPECT_EQ(sink->num_tokens(), 1);
}

TEST_F(StepLoopTest, AFinishTakesEffectAfterTheStepInFlight) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> sink = submit(1, kEndless);
  executor_.wait_until_inside();
  loop_->finish(1, 0);
  loop_->finish(77, 0);
  executor_.release();
  EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kStop);
  EXPECT_EQ(sink->num_tokens(), 1);
}

TEST_F(StepLoopTest, ACancelOfARequestOnItsWayInEndsIt) {
  executor_.hold();
  start();
  submit(1, kEndless);
  executor_.wait_until_inside();
  const std::shared_ptr<WaitingSink> sink = submit(2, kEndless);
  loop_->cancel(2, FinishReason::kCancelled, cancelled("at once"));
  executor_.release();
  EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kCancelled);
  EXPECT_EQ(sink->num_tokens(), 0);
}

TEST_F(StepLoopTest, ADeadlineEndsARequestAfterTheStepInFlight) {
  executor_.hold();
  start();
  TimePoint deadline = clock_.now() + seconds(2);
  const std::shared_ptr<WaitingSink> sink = submit(1, kEndless, &deadline);
  executor_.wait_until_inside();
  clock_.advance(seconds(3));
  executor_.release();
  EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kDeadline);
  EXPECT_EQ(sink->num_tokens(), 1);
}

TEST_F(StepLoopTest, RefusesSynchronouslyWhenTheQueueIsFull) {
  executor_.hold();
  start();
  submit(1, 1);
  executor_.wait_until_inside();
  // The loop is in a step and takes nothing in: what was submitted counts all the same.
  std::vector<std::shared_ptr<WaitingSink>> sinks;
  for (RequestId id = 2; id <= 4; ++id) sinks.push_back(submit(id, 1));
  EXPECT_EQ(try_submit(5).code(), absl::StatusCode::kResourceExhausted);
  executor_.release();
  for (const auto& sink : sinks) EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kLength);
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
}

TEST_F(StepLoopTest, WakesWhenTheBatchTimeoutHasPassed) {
  options_.batch_timeout = milliseconds(1);
  const SteadyClock steady;
  StepLoop loop(options_, executor_, metrics_, steady, [](const absl::Status&) {});
  loop.start();
  auto sink = std::make_shared<WaitingSink>();
  ASSERT_TRUE(loop.submit(make_request(1, counting_prompt(4), 3, sink, steady.now())).ok());
  const FinishEvent finish = sink->wait_for_finish();
  EXPECT_EQ(finish.reason, FinishReason::kLength);
  EXPECT_GE(finish.first_scheduled, finish.arrival + milliseconds(1));
}

TEST_F(StepLoopTest, AFullFirstBatchDoesNotWaitForTheTimeout) {
  options_.batch_timeout = std::chrono::hours(1);
  options_.max_batch_size = 2;
  start();
  const std::shared_ptr<WaitingSink> first = submit(1, 2);
  const std::shared_ptr<WaitingSink> second = submit(2, 2);
  first->wait_for_finish();
  second->wait_for_finish();
}

TEST_F(StepLoopTest, DrainLetsRunningWorkFinish) {
  start();
  const std::shared_ptr<WaitingSink> first = submit(1, 500);
  const std::shared_ptr<WaitingSink> second = submit(2, 300);
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
  EXPECT_EQ(first->num_tokens(), 500);
  EXPECT_EQ(second->num_tokens(), 300);
  EXPECT_EQ(try_submit(3).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(loop_->drain(seconds(60)), 0) << "nothing is left to drain";
}

TEST_F(StepLoopTest, DrainCancelsTheRestAtItsLimit) {
  start();
  const std::shared_ptr<WaitingSink> first = submit(1, kEndless);
  const std::shared_ptr<WaitingSink> second = submit(2, kEndless);
  first->wait_for_token();
  EXPECT_EQ(loop_->drain(milliseconds(1)), 2);
  for (const auto& sink : {first, second}) {
    EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kCancelled);
    EXPECT_EQ(sink->wait_for_finish().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(sink->num_finishes(), 1U);
  }
}

TEST_F(StepLoopTest, StopEndsWhatIsLeft) {
  start();
  const std::shared_ptr<WaitingSink> sink = submit(1, kEndless);
  sink->wait_for_token();
  loop_->stop();
  EXPECT_EQ(sink->num_finishes(), 1U);
  EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kCancelled);
  EXPECT_EQ(sink->wait_for_finish().status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(try_submit(2).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(loop_->alive(seconds(1)));
  loop_->stop();  // again
}

TEST_F(StepLoopTest, ALoopNeverStartedEndsItsRequests) {
  make_loop();
  const std::shared_ptr<WaitingSink> sink = submit(1, 5);
  loop_.reset();
  EXPECT_EQ(sink->num_finishes(), 1U);
  EXPECT_EQ(sink->wait_for_finish().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(StepLoopTest, AFailedEngineEndsEveryRequestAndRefusesLaterOnes) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> running = submit(1, kEndless);
  executor_.wait_until_inside();
  const std::shared_ptr<WaitingSink> coming = submit(2, kEndless);
  executor_.fail(internal_error("rank 3 is gone"));
  executor_.release();
  for (const auto& sink : {running, coming}) {
    const FinishEvent finish = sink->wait_for_finish();
    EXPECT_EQ(finish.reason, FinishReason::kError);
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(message_of(finish.status), "the engine failed: rank 3 is gone");
  }
  EXPECT_EQ(try_submit(3).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
  loop_->stop();
  EXPECT_EQ(num_fatal_, 1);
  EXPECT_EQ(message_of(fatal_), "rank 3 is gone");
  EXPECT_EQ(running->num_finishes(), 1U);
  EXPECT_EQ(loop_->stats().num_blocks_used, 0);
}

TEST_F(StepLoopTest, AFailureThatTheEngineOutlivesEndsWhatRanAndNothingElse) {
  options_.max_batch_size = 1;
  for (const absl::Status& failure : {deadline_exceeded("no step has moved"),
                                      unavailable("rank 1 is gone"),
                                      resource_exhausted("out of host memory")}) {
    executor_.hold();
    if (loop_ == nullptr) start();
    const std::shared_ptr<WaitingSink> running = submit(1, kEndless);
    executor_.wait_until_inside();
    std::vector<std::shared_ptr<WaitingSink>> waiting;
    for (RequestId id = 2; id <= 4; ++id) waiting.push_back(submit(id, 5));
    executor_.fail_once(failure);
    executor_.release();
    const FinishEvent finish = running->wait_for_finish();
    EXPECT_EQ(finish.reason, FinishReason::kError);
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(message_of(finish.status), "the step failed: " + message_of(failure));
    for (const auto& sink : waiting) {
      EXPECT_EQ(sink->wait_for_finish().reason, FinishReason::kLength);
      EXPECT_EQ(sink->num_tokens(), 5);
      EXPECT_EQ(sink->num_finishes(), 1U);
    }
    EXPECT_EQ(running->num_finishes(), 1U);
  }
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
  loop_->stop();
  EXPECT_EQ(recoveries_, "()()()");
  EXPECT_EQ(num_fatal_, 0);
  EXPECT_EQ(loop_->stats().num_blocks_used, 0);
  for (const char* cause : {"stall", "communicator", "memory"}) {
    EXPECT_THAT(registry_.render(),
                HasSubstr(fmt::format("r1d_engine_recoveries_total{{cause=\"{}\"}} 1", cause)));
  }
}

TEST_F(StepLoopTest, AFailureThatComesBackTooOftenLosesTheEngine) {
  executor_.fail(unavailable("rank 1 is gone"));
  start();
  for (RequestId id = 1; id <= 3; ++id) submit(id, 5)->wait_for_finish();
  clock_.advance(std::chrono::minutes(10));
  for (RequestId id = 4; id <= 6; ++id) submit(id, 5)->wait_for_finish();
  const FinishEvent last = submit(7, 5)->wait_for_finish();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(message_of(last.status),
            "the engine failed: rank 1 is gone (the engine has recovered 3 times in 10 minutes)");
  loop_->stop();
  EXPECT_EQ(num_fatal_, 1);
  EXPECT_EQ(executor_.num_recoveries(), 6);
}

TEST_F(StepLoopTest, AnEngineThatDoesNotRecoverIsLostWithAllThatWaited) {
  options_.max_batch_size = 1;
  executor_.hold();
  executor_.fail_to_recover(internal_error("rank 0 does not come"));
  start();
  const std::shared_ptr<WaitingSink> running = submit(1, kEndless);
  executor_.wait_until_inside();
  const std::shared_ptr<WaitingSink> waiting = submit(2, 5);
  executor_.fail_once(unavailable("rank 1 is gone"));
  executor_.release();
  EXPECT_EQ(message_of(running->wait_for_finish().status), "the step failed: rank 1 is gone");
  EXPECT_EQ(message_of(waiting->wait_for_finish().status),
            "the engine failed: rank 1 is gone; it does not recover: rank 0 does not come");
  loop_->stop();
  EXPECT_EQ(recoveries_, "(") << "health stays as it is";
  EXPECT_EQ(num_fatal_, 1);
  EXPECT_EQ(waiting->num_tokens(), 0);
}

TEST_F(StepLoopTest, IsNotAliveWhenAStepStandsStill) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> sink = submit(1, 3);
  executor_.wait_until_inside();
  EXPECT_TRUE(loop_->alive(seconds(4)));
  EXPECT_FALSE(alive_after(seconds(4)));
  executor_.make_progress();  // one layer
  EXPECT_TRUE(loop_->alive(seconds(4)));
  EXPECT_FALSE(alive_after(seconds(4)));
  executor_.release();
  sink->wait_for_finish();
  EXPECT_TRUE(loop_->alive(seconds(4)));
}

TEST_F(StepLoopTest, DrainDoesNotWaitForAStepThatStandsStill) {
  executor_.hold();
  start();
  const std::shared_ptr<WaitingSink> sink = submit(1, 3);
  executor_.wait_until_inside();
  EXPECT_TRUE(loop_->alive(seconds(4)));
  std::future<std::optional<int64_t>> drained =
      std::async(std::launch::async, [&] { return loop_->drain(seconds(3600)); });
  EXPECT_FALSE(alive_after(seconds(4)));
  EXPECT_EQ(drained.get(), std::nullopt);
  executor_.release();
  EXPECT_EQ(sink->wait_for_finish().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(StepLoopTest, AnEngineThatThrowsIsAnEngineThatFailed) {
  for (const bool memory : {false, true}) {
    executor_.fail_by([memory] {
      if (memory) throw std::bad_alloc();
      throw std::runtime_error("rank 3 is gone");
    });
    start();
    const FinishEvent finish = submit(1, kEndless)->wait_for_finish();
    EXPECT_EQ(finish.status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(message_of(finish.status),
                HasSubstr(memory ? "out of host memory" : "rank 3 is gone"));
    loop_->stop();
  }
  EXPECT_EQ(num_fatal_, 2);
}

TEST_F(StepLoopTest, ShowsItsStateInMetricsAndStats) {
  start();
  submit(1, 5)->wait_for_finish();
  EXPECT_EQ(loop_->drain(seconds(60)), 0);
  const std::string text = registry_.render();
  EXPECT_THAT(text, HasSubstr("r1d_finished_total{reason=\"length\"} 1"));
  EXPECT_THAT(text, HasSubstr("r1d_step_seconds_count 5"));
  EXPECT_THAT(text, HasSubstr("r1d_requests_running 0"));
  EXPECT_EQ(loop_->stats().num_running, 0);
  EXPECT_EQ(loop_->stats().num_blocks, 32);
}

}  // namespace
}  // namespace r1d::scheduler
