// SPDX-License-Identifier: Apache-2.0
#include "r1d/admission/frontend.h"

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/scheduler/step_loop.h"
#include "r1d/telemetry/metrics.h"

#include "tests/admission/fake_executor.h"
#include "tests/admission/support.h"

namespace r1d::admission {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Collects one sequence and lets the test wait for its end.
class Sink final : public scheduler::OutputSink {
 public:
  void on_token(scheduler::TokenEvent event) override {
    const base::MutexLock lock(mu_);
    tokens_.push_back(event.token.token);
  }
  void on_finish(const scheduler::FinishEvent& event) override {
    const base::MutexLock lock(mu_);
    finish_ = event;
    finished_.notify_all();
  }
  scheduler::FinishEvent wait() {
    const base::MutexLock lock(mu_);
    while (!finish_.has_value()) finished_.wait(mu_);
    return *finish_;
  }
  std::vector<TokenId> tokens() {
    const base::MutexLock lock(mu_);
    return tokens_;
  }

 private:
  base::Mutex mu_;
  base::CondVar finished_;
  std::vector<TokenId> tokens_ ABSL_GUARDED_BY(mu_);
  std::optional<scheduler::FinishEvent> finish_ ABSL_GUARDED_BY(mu_);
};

scheduler::SchedulerOptions options() {
  scheduler::SchedulerOptions options;
  options.max_batch_size = 2;
  options.max_model_len = 64;
  options.max_waiting_requests = 2;
  options.block_size = 16;
  options.num_blocks = 16;
  return options;
}

class FrontendTest : public ::testing::Test {
 protected:
  FrontendTest()
      : metrics_(registry_),
        loop_(options(), executor_, metrics_, clock_, [this](const absl::Status& why) {
          frontend_.fail(why);
        }) {}

  void serve() {
    loop_.start();
    frontend_.attach(small_limits(), nullptr, loop_);
  }

  absl::StatusOr<RequestId> submit(const GenerateRequest& request) {
    sink_ = std::make_shared<Sink>();
    const auto accepted = frontend_.submit(request, sink_);
    if (!accepted.ok()) return accepted.status();
    return accepted->id;
  }

  // The loop calls frontend_.fail() from its thread, so it is stopped first, by its destructor.
  SteadyClock clock_;
  testing::FakeExecutor executor_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics metrics_;
  Frontend frontend_{clock_};
  scheduler::StepLoop loop_;
  std::shared_ptr<Sink> sink_;
};

TEST_F(FrontendTest, RefusesWhileLoadingAndHasNoLimitsYet) {
  const auto id = submit(good_request());
  EXPECT_TRUE(absl::IsUnavailable(id.status()));
  EXPECT_EQ(message_of(id.status()), "the model is still loading");
  EXPECT_TRUE(retry_after_of(id.status()).has_value());
  EXPECT_EQ(frontend_.state(), Frontend::State::kLoading);
  EXPECT_EQ(frontend_.limits(), nullptr);
  EXPECT_FALSE(frontend_.load().has_value());
  frontend_.cancel(1, cancelled("nobody"));
}

TEST_F(FrontendTest, ServesOnceAttached) {
  serve();
  EXPECT_EQ(frontend_.state(), Frontend::State::kServing);
  EXPECT_EQ(frontend_.limits()->model_name, "small");
  EXPECT_TRUE(frontend_.load().has_value());
  GenerateRequest request = good_request();
  request.max_tokens = 3;
  request.seed = 0;
  const auto id = submit(request);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(sink_->wait().reason, scheduler::FinishReason::kLength);
  EXPECT_THAT(sink_->tokens(), ElementsAre(13, 14, 15));
  frontend_.detach();
}

TEST_F(FrontendTest, GivesEveryRequestAnIdOfItsOwn) {
  serve();
  GenerateRequest request = good_request();
  request.max_tokens = 1;
  const auto first = submit(request);
  sink_->wait();
  const auto second = submit(request);
  sink_->wait();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(*first, 0U);
  EXPECT_NE(*first, *second);
  frontend_.detach();
}

TEST_F(FrontendTest, RefusesBadRequestsWithoutTroublingTheLoop) {
  serve();
  GenerateRequest request = good_request();
  request.n = 0;
  EXPECT_EQ(field_of(submit(request).status()), "sampling.n");
  frontend_.detach();
}

TEST_F(FrontendTest, RefusesADeadlineThatHasPassed) {
  serve();
  GenerateRequest request = good_request();
  request.deadline = clock_.now();
  EXPECT_TRUE(absl::IsDeadlineExceeded(submit(request).status()));
  frontend_.detach();
}

TEST_F(FrontendTest, SaysWhenToRetryWhenTheQueueIsFull) {
  executor_.close_gate();
  serve();
  ASSERT_TRUE(submit(good_request()).ok());
  executor_.wait_until_held();
  absl::Status status;
  std::vector<std::shared_ptr<Sink>> sinks{sink_};
  for (int32_t i = 0; i < 16 && status.ok(); ++i) {
    status = submit(good_request()).status();
    if (status.ok()) sinks.push_back(sink_);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(retry_after_of(status).has_value());
  executor_.open_gate();
  for (const auto& sink : sinks) sink->wait();
  frontend_.detach();
}

TEST_F(FrontendTest, CancelsARunningRequest) {
  executor_.close_gate();
  serve();
  const auto id = submit(good_request());
  ASSERT_TRUE(id.ok());
  executor_.wait_until_held();
  frontend_.cancel(*id, cancelled("the client left"));
  executor_.open_gate();
  const auto finish = sink_->wait();
  EXPECT_EQ(finish.reason, scheduler::FinishReason::kCancelled);
  EXPECT_EQ(message_of(finish.status), "the client left");
  frontend_.detach();
}

TEST_F(FrontendTest, RefusesWhileDrainingAndFinishesWhatRuns) {
  executor_.close_gate();
  serve();
  ASSERT_TRUE(submit(good_request()).ok());
  executor_.wait_until_held();
  const auto running = sink_;
  frontend_.begin_drain();
  EXPECT_EQ(frontend_.state(), Frontend::State::kDraining);
  const auto late = submit(good_request());
  EXPECT_TRUE(absl::IsUnavailable(late.status()));
  EXPECT_THAT(message_of(late.status()), HasSubstr("draining"));
  EXPECT_TRUE(retry_after_of(late.status()).has_value());
  executor_.open_gate();
  EXPECT_EQ(running->wait().reason, scheduler::FinishReason::kLength);
  frontend_.detach();
}

TEST_F(FrontendTest, StaysDrainingWhenTheModelComesTooLate) {
  frontend_.begin_drain();
  serve();
  EXPECT_EQ(frontend_.state(), Frontend::State::kDraining);
  EXPECT_TRUE(absl::IsUnavailable(submit(good_request()).status()));
  frontend_.detach();
}

TEST_F(FrontendTest, SaysWhyOnceTheEngineIsLost) {
  executor_.close_gate();
  serve();
  ASSERT_TRUE(submit(good_request()).ok());
  executor_.wait_until_held();
  executor_.break_engine(internal_error("device 3 fell off the bus"));
  executor_.open_gate();
  EXPECT_TRUE(absl::IsUnavailable(sink_->wait().status));
  loop_.stop();
  EXPECT_EQ(frontend_.state(), Frontend::State::kFailed);
  const auto late = submit(good_request());
  EXPECT_TRUE(absl::IsUnavailable(late.status()));
  EXPECT_THAT(message_of(late.status()), HasSubstr("the engine was lost"));
  EXPECT_FALSE(retry_after_of(late.status()).has_value());
  frontend_.begin_drain();
  EXPECT_EQ(frontend_.state(), Frontend::State::kFailed);
  frontend_.detach();
}

TEST_F(FrontendTest, ForgetsTheLoopOnDetach) {
  serve();
  frontend_.detach();
  EXPECT_TRUE(absl::IsUnavailable(submit(good_request()).status()));
  EXPECT_FALSE(frontend_.load().has_value());
  frontend_.cancel(1, cancelled("nobody"));
}

TEST_F(FrontendTest, TakesCallsFromManyThreadsWhileItDetaches) {
  serve();
  std::vector<std::thread> threads;
  std::atomic<int32_t> num_unexpected{0};
  for (int32_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, &num_unexpected] {
      GenerateRequest request = good_request();
      request.max_tokens = 1;
      for (int32_t i = 0; i < 200; ++i) {
        const auto accepted = frontend_.submit(request, std::make_shared<Sink>());
        const absl::Status& status = accepted.status();
        if (accepted.ok()) {
          frontend_.cancel(accepted->id, cancelled("changed my mind"));
        } else if (!absl::IsUnavailable(status) && !absl::IsResourceExhausted(status)) {
          ++num_unexpected;
        }
      }
    });
  }
  frontend_.detach();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_unexpected, 0);
}

}  // namespace
}  // namespace r1d::admission
