// SPDX-License-Identifier: Apache-2.0
// An engine whose step failed goes on with the weights that it has, token for token, or says that
// it cannot. Real ranks on threads, a small model with dummy weights, faults at the fault points.
#include <algorithm>
#include <future>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"
#include "r1d/engine/engine.h"

#include "tests/support/test_data.h"

namespace r1d::engine {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kBlockSize = 4;
constexpr int32_t kNumTokens = 24;

absl::StatusOr<std::unique_ptr<Engine>> make_engine(int32_t world_size) {
  R1D_ASSIGN_OR_RETURN(
      const auto config,
      checkpoint::ModelConfig::load(test::data("golden/v3-generic-bf16/config.json")));
  // The source is gone when create() returns: whoever wants weights later gets none.
  const auto source = checkpoint::make_dummy_source(config, /*seed=*/11);
  const EngineOptions options{.world_size = world_size,
                              .num_threads = world_size,
                              .kv_cache_bytes = 8 << 20,
                              .block_size = kBlockSize,
                              .max_model_len = 64,
                              .max_num_batched_tokens = 32,
                              .max_batch_size = 4};
  const LoadFraction no_report = [](double) { return absl::OkStatus(); };
  return Engine::create(*source, options, static_cast<TokenId>(config.vocab_size - 1), no_report);
}

// One greedy sequence, driven by hand.
class Sequence {
 public:
  Sequence() {
    std::iota(blocks_.begin(), blocks_.end(), 0);
    sampling_.temperature = 0;
    sampling_.max_tokens = kNumTokens;
  }

  absl::Status step(Engine& engine) {
    const auto length = static_cast<int32_t>(tokens_.size());
    const SequenceStep step{.sequence = 1,
                            .tokens = tokens_,
                            .num_prompt_tokens = 5,
                            .start = num_computed_,
                            .count = length - num_computed_,
                            .block_table = blocks_,
                            .sampling = &sampling_};
    R1D_ASSIGN_OR_RETURN(const StepOutput output, engine.execute({&step, 1}));
    num_computed_ = length;
    R1D_RETURN_IF_ERROR(output.tokens.front().status);
    tokens_.push_back(output.tokens.front().token);
    return absl::OkStatus();
  }

  absl::Status run(Engine& engine) {
    for (int32_t i = 0; i < kNumTokens; ++i) R1D_RETURN_IF_ERROR(step(engine));
    return absl::OkStatus();
  }

  [[nodiscard]] const std::vector<TokenId>& tokens() const { return tokens_; }

 private:
  std::vector<TokenId> tokens_ = {3, 1, 4, 1, 5};
  std::vector<BlockId> blocks_ = std::vector<BlockId>(16);
  SamplingParams sampling_;
  int32_t num_computed_ = 0;
};

class RecoveryTest : public ::testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override {
    if (!base::kFaultsCompiledIn) GTEST_SKIP() << "no fault points in this build";
    auto engine = make_engine(GetParam());
    ASSERT_TRUE(engine.ok()) << message_of(engine.status());
    engine_ = *std::move(engine);
    Sequence sequence;
    ASSERT_TRUE(sequence.run(*engine_).ok());
    expected_ = sequence.tokens();
  }
  // Lets go of what hangs before the engine joins its ranks.
  void TearDown() override { base::clear_faults(); }

  void arm(const std::string& spec) { ASSERT_TRUE(base::arm_faults(spec).ok()) << spec; }
  [[nodiscard]] std::string last_rank() const { return fmt::format("@rank{}", GetParam() - 1); }

  // The failure of a whole run, which must come.
  absl::Status fail() {
    Sequence sequence;
    absl::Status failure = sequence.run(*engine_);
    EXPECT_FALSE(failure.ok());
    return failure;
  }
  std::future<absl::Status> start_to_fail() {
    return std::async(std::launch::async, [this] { return fail(); });
  }
  // As a watcher does: until nothing has moved for a while.
  void interrupt_when_still(const std::future<absl::Status>& run) {
    uint64_t seen = 0;
    for (int looks = 0; looks < 8; ++looks) {
      if (run.wait_for(std::chrono::milliseconds(50)) == std::future_status::ready) return;
      const uint64_t progress = engine_->progress();
      if (std::exchange(seen, progress) != progress) looks = 0;
    }
    engine_->interrupt(deadline_exceeded("it stands still"));
  }
  void expect_the_same_tokens() {
    Sequence sequence;
    const absl::Status status = sequence.run(*engine_);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(sequence.tokens(), expected_);
  }

  std::unique_ptr<Engine> engine_;
  std::vector<TokenId> expected_;
};

TEST_P(RecoveryTest, AFailedCollectiveIsOutlived) {
  for (const int skip : {0, 7, 30}) {
    arm(fmt::format("ops.collective=error{}@{}+1", last_rank(), skip));
    const absl::Status failure = fail();
    EXPECT_EQ(recovery_cause(failure), RecoveryCause::kCommunicator) << failure;
    EXPECT_THAT(message_of(failure), HasSubstr("fault point ops.collective"));
    ASSERT_TRUE(engine_->recover().ok());
    expect_the_same_tokens();
  }
}

TEST_P(RecoveryTest, AHungCollectiveEndsWhenItIsInterrupted) {
  arm("ops.collective=hang" + last_rank() + "@20+1");
  std::future<absl::Status> run = start_to_fail();
  interrupt_when_still(run);
  const absl::Status failure = run.get();
  EXPECT_EQ(recovery_cause(failure), RecoveryCause::kStall) << failure;
  EXPECT_EQ(message_of(failure), "it stands still");
  ASSERT_TRUE(engine_->recover().ok());
  expect_the_same_tokens();
}

TEST_P(RecoveryTest, NoMemoryOnOneRankOrOnTheLoopsThreadIsOutlived) {
  for (const std::string& spec : {"model.layer=oom" + last_rank() + "@9+1",
                                  "ops.collective=oom" + last_rank() + "@9+1",
                                  std::string("engine.step=oom@4+1")}) {
    arm(spec);
    const absl::Status failure = fail();
    EXPECT_EQ(recovery_cause(failure), RecoveryCause::kMemory) << spec << ": " << failure;
    ASSERT_TRUE(engine_->recover().ok()) << spec;
    expect_the_same_tokens();
  }
}

TEST_P(RecoveryTest, ASlowStepThatWasInterruptedFailsThoughItEnds) {
  arm("engine.step=hang@2+1");
  std::future<absl::Status> run = start_to_fail();
  interrupt_when_still(run);
  base::clear_faults();
  EXPECT_EQ(recovery_cause(run.get()), RecoveryCause::kStall);
  ASSERT_TRUE(engine_->recover().ok());
  expect_the_same_tokens();
}

TEST_P(RecoveryTest, WhatMayHaveTornTheRankHasNoCauseToRecover) {
  for (const std::string& spec : {"model.layer=throw" + last_rank() + "@9+1",
                                  "model.layer=error" + last_rank() + "@9+1",
                                  "ops.collective=throw" + last_rank() + "@9+1"}) {
    arm(spec);
    const absl::Status failure = fail();
    EXPECT_EQ(failure.code(), absl::StatusCode::kInternal) << spec;
    EXPECT_FALSE(recovery_cause(failure).has_value()) << spec;
    ASSERT_TRUE(engine_->recover().ok()) << "which here is only to go on with the test";
  }
}

TEST_P(RecoveryTest, ARejoinThatFailsOrThrowsSaysSo) {
  for (const char* const action : {"error", "throw", "oom"}) {
    arm("ops.collective=error@1");
    EXPECT_EQ(recovery_cause(fail()), RecoveryCause::kCommunicator);
    arm(fmt::format("engine.rejoin={}{}@1", action, last_rank()));
    EXPECT_FALSE(engine_->recover().ok()) << action;
    ASSERT_TRUE(engine_->recover().ok());
  }
  expect_the_same_tokens();
}

// The rank in compute does not see an interrupt; the others do, and wait for it.
TEST_P(RecoveryTest, ARankThatHangsInComputeKeepsTheStepUntilItComesBack) {
  arm("model.layer=hang" + last_rank() + "@9+1");
  std::future<absl::Status> run = start_to_fail();
  interrupt_when_still(run);
  EXPECT_EQ(run.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  base::clear_faults();
  EXPECT_EQ(recovery_cause(run.get()), RecoveryCause::kStall);
  ASSERT_TRUE(engine_->recover().ok());
  expect_the_same_tokens();
}

TEST_P(RecoveryTest, AnInterruptBetweenStepsIsForNobody) {
  engine_->interrupt(deadline_exceeded("too late"));
  expect_the_same_tokens();
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, RecoveryTest, ::testing::Values(1, 2, 4));

TEST(RecoveryCauseTest, EveryCauseHasANameAndEveryOtherCodeNone) {
  EXPECT_STREQ(recovery_cause_name(*recovery_cause(deadline_exceeded("x"))), "stall");
  EXPECT_STREQ(recovery_cause_name(*recovery_cause(unavailable("x"))), "communicator");
  EXPECT_STREQ(recovery_cause_name(*recovery_cause(absl::AbortedError("x"))), "communicator");
  EXPECT_STREQ(recovery_cause_name(*recovery_cause(resource_exhausted("x"))), "memory");
  EXPECT_FALSE(recovery_cause(absl::OkStatus()).has_value());
  EXPECT_FALSE(recovery_cause(internal_error("x")).has_value());
  EXPECT_FALSE(recovery_cause(invalid_argument("x")).has_value());
}

}  // namespace
}  // namespace r1d::engine
