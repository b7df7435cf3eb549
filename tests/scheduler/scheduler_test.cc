// SPDX-License-Identifier: Apache-2.0
#include "r1d/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/sequence.h"
#include "tests/scheduler/fakes.h"
#include "tests/scheduler/shadow_executor.h"

namespace r1d::scheduler {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = Decision::Kind;

SchedulerOptions small_options() {
  SchedulerOptions options;
  options.max_batch_size = 4;
  options.max_num_batched_tokens = 32;
  options.max_model_len = 64;
  options.max_waiting_requests = 8;
  options.block_size = 4;
  options.num_blocks = 64;
  return options;
}

class SchedulerTest : public ::testing::Test {
 protected:
  void use(const SchedulerOptions& options) {
    options_ = options;
    executor_ = std::make_unique<ShadowExecutor>(options, model_);
    scheduler_ = std::make_unique<Scheduler>(options);
  }
  void SetUp() override { use(small_options()); }

  Request request(RequestId id, std::vector<TokenId> prompt, int32_t max_tokens, int32_t n = 1) {
    sinks_[id] = std::make_shared<RecordingSink>(n);
    Request made = make_request(id, std::move(prompt), max_tokens, sinks_[id], now());
    made.n = n;
    return made;
  }
  void add(Request request) {
    const absl::Status status = scheduler_->add(std::move(request), now());
    ASSERT_TRUE(status.ok()) << status;
  }
  void add(RequestId id, std::vector<TokenId> prompt, int32_t max_tokens) {
    add(request(id, std::move(prompt), max_tokens));
  }

  // One whole turn; false unless a step ran.
  bool step() {
    if (scheduler_->plan(now()).kind != Kind::kRun) return false;
    scheduler_->check_invariants();
    last_batch_.clear();
    for (const engine::SequenceStep& s : scheduler_->batch())
      last_batch_.push_back({s.sequence, s.count});
    absl::StatusOr<engine::StepOutput> output = executor_->execute(scheduler_->batch());
    EXPECT_TRUE(output.ok()) << output.status();
    if (!output.ok()) return false;
    clock_.advance(milliseconds(10));
    scheduler_->commit(*std::move(output), now());
    scheduler_->check_invariants();
    return true;
  }
  void run_until_idle() {
    for (int32_t i = 0; i < 10'000 && !scheduler_->idle(); ++i) step();
    ASSERT_TRUE(scheduler_->idle());
    EXPECT_EQ(scheduler_->stats().num_blocks_used, 0);
  }

  TimePoint now() const { return clock_.now(); }
  RecordingSink& sink(RequestId id) { return *sinks_.at(id); }

  using Share = std::pair<SequenceId, int32_t>;  // sequence, tokens
  SchedulerOptions options_;
  FakeModel model_;
  ManualClock clock_;
  std::unique_ptr<ShadowExecutor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<RequestId, std::shared_ptr<RecordingSink>> sinks_;
  std::vector<Share> last_batch_;
};

using ::testing::ElementsAre;
using ::testing::Pair;

TEST_F(SchedulerTest, IsIdleWithoutRequests) {
  EXPECT_EQ(scheduler_->plan(now()).kind, Kind::kIdle);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, StreamsWhatTheModelGivesAlone) {
  add(1, counting_prompt(10), 5);
  run_until_idle();
  EXPECT_EQ(sink(1).stream().tokens, tokens_alone(model_, counting_prompt(10), 1, 5));
  EXPECT_EQ(sink(1).stream().finishes.size(), 1U);
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kLength);
  EXPECT_EQ(sink(1).finish().num_prompt_tokens, 10);
  EXPECT_EQ(sink(1).finish().num_output_tokens, 5);
}

TEST_F(SchedulerTest, FillsInTheTimesOfASequence) {
  const TimePoint arrival = now();
  add(1, counting_prompt(40), 3);
  clock_.advance(milliseconds(5));
  run_until_idle();  // 32 + 8 prompt tokens, then 2 decodes, 10 ms each
  const FinishEvent& finish = sink(1).finish();
  EXPECT_EQ(finish.arrival, arrival);
  EXPECT_EQ(finish.first_scheduled, arrival + milliseconds(5));
  EXPECT_EQ(sink(1).stream().started, finish.first_scheduled);
  EXPECT_EQ(finish.first_token, arrival + milliseconds(25));
  EXPECT_EQ(finish.time, arrival + milliseconds(45));
}

TEST_F(SchedulerTest, SplitsALongPromptAtTheTokenBudget) {
  add(1, counting_prompt(50), 2);
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 32)));
  EXPECT_TRUE(sink(1).stream().tokens.empty());
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 18)));
  EXPECT_EQ(sink(1).stream().tokens.size(), 1U);
}

TEST_F(SchedulerTest, ServesDecodesThenChunksThenAdmissions) {
  add(1, counting_prompt(4), 10);
  ASSERT_TRUE(step());
  add(2, counting_prompt(40, 100), 10);
  add(3, counting_prompt(8, 200), 10);
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 1), Pair(2, 31)));
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 1), Pair(2, 9), Pair(3, 8)));
}

TEST_F(SchedulerTest, HoldsNoMoreThanMaxBatchSize) {
  for (RequestId id = 1; id <= 6; ++id) add(id, counting_prompt(2, static_cast<TokenId>(id)), 3);
  ASSERT_TRUE(step());
  EXPECT_EQ(last_batch_.size(), 4U);
  EXPECT_EQ(scheduler_->stats().num_waiting, 2);
  EXPECT_EQ(scheduler_->stats().num_running, 4);
  run_until_idle();
}

TEST_F(SchedulerTest, RefusesWhatTheWaitingQueueCannotHold) {
  for (RequestId id = 1; id <= 8; ++id) add(id, counting_prompt(3), 2);
  const absl::Status status = scheduler_->add(request(9, counting_prompt(3), 2), now());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(message_of(status), "the waiting queue is full: 8 requests wait, 8 may");
  ASSERT_TRUE(step());
  add(9, counting_prompt(3), 2);  // four have left the queue
  run_until_idle();
}

TEST_F(SchedulerTest, PreemptedSequencesDoNotFillTheWaitingQueue) {
  for (RequestId id = 1; id <= 4; ++id) add(id, counting_prompt(3), 5);
  ASSERT_TRUE(step());
  scheduler_->preempt_all();
  scheduler_->check_invariants();
  EXPECT_EQ(scheduler_->stats().num_waiting, 4);
  EXPECT_EQ(scheduler_->stats().num_queued_requests, 0);
  for (RequestId id = 5; id <= 12; ++id) add(id, counting_prompt(3), 5);
  run_until_idle();
}

TEST_F(SchedulerTest, LowerPriorityValuesRunEarlier) {
  options_.max_batch_size = 1;
  use(options_);
  for (RequestId id = 1; id <= 3; ++id) {
    Request made = request(id, counting_prompt(3), 2);
    made.priority = id == 3 ? -1 : 0;
    add(std::move(made));
  }
  std::vector<SequenceId> order;
  while (step()) order.push_back(last_batch_.at(0).first);
  EXPECT_THAT(order, ElementsAre(3, 3, 1, 1, 2, 2));
}

TEST_F(SchedulerTest, WaitingMakesUpForPriority) {
  options_.max_batch_size = 1;
  options_.priority_aging = seconds(1);
  use(options_);
  Request patient = request(1, counting_prompt(3), 1);
  patient.priority = 2;
  add(std::move(patient));
  clock_.advance(milliseconds(1900));
  add(2, counting_prompt(3), 1);  // 1.9 s later but two levels higher: runs first
  clock_.advance(milliseconds(200));
  add(3, counting_prompt(3), 1);  // 2.1 s later: behind
  std::vector<SequenceId> order;
  while (step()) order.push_back(last_batch_.at(0).first);
  EXPECT_THAT(order, ElementsAre(2, 1, 3));
}

TEST(RankTest, DoesNotOverflow) {
  const TimePoint arrival = ManualClock().now();
  EXPECT_LT(rank_of(arrival, std::numeric_limits<int32_t>::min(), std::chrono::hours(10)), arrival);
  EXPECT_GT(rank_of(arrival, std::numeric_limits<int32_t>::max(), std::chrono::hours(10)), arrival);
  EXPECT_EQ(rank_of(arrival, 3, seconds(2)), arrival + seconds(6));
  EXPECT_EQ(rank_of(arrival, 3, seconds(0)), arrival) << "no aging: first come, first served";
}

TEST_F(SchedulerTest, PreemptsTheLatestAndResumesItWithTheSameTokens) {
  options_.num_blocks = 16;  // 64 slots; two sequences of up to 44 tokens
  use(options_);
  add(1, counting_prompt(4), 40);
  add(2, counting_prompt(4, 100), 40);
  run_until_idle();
  EXPECT_GE(sink(2).finish().num_preemptions, 1);
  EXPECT_EQ(sink(1).finish().num_preemptions, 0);
  EXPECT_EQ(sink(1).stream().tokens, tokens_alone(model_, counting_prompt(4), 1, 40));
  EXPECT_EQ(sink(2).stream().tokens, tokens_alone(model_, counting_prompt(4, 100), 2, 40));
  EXPECT_EQ(scheduler_->stats().num_preemptions, sink(2).finish().num_preemptions);
}

TEST_F(SchedulerTest, ASequencePreemptedWithinThePlanIsNotInTheBatch) {
  options_.block_size = 1;
  options_.num_blocks = 64;
  options_.max_num_batched_tokens = 20;
  use(options_);
  Request late = request(1, counting_prompt(20), 30);  // admitted first, ranks last
  late.priority = 100;
  add(std::move(late));
  ASSERT_TRUE(step());
  add(2, counting_prompt(42, 100), 10);  // fits for now: 21 held, 1 headroom
  ASSERT_TRUE(step());
  ASSERT_THAT(last_batch_, ElementsAre(Pair(1, 1), Pair(2, 19)));
  ASSERT_TRUE(step());
  ASSERT_THAT(last_batch_, ElementsAre(Pair(1, 1), Pair(2, 19)));
  // One takes its 23rd block and is in the step; two needs 4 more, 3 are free: one gives way.
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(2, 4)));
  EXPECT_EQ(scheduler_->stats().num_preemptions, 1);
  run_until_idle();
  EXPECT_EQ(sink(1).stream().tokens, tokens_alone(model_, counting_prompt(20), 1, 30));
}

TEST_F(SchedulerTest, AdmissionWaitsForBlocksForTheWholePrompt) {
  options_.num_blocks = 16;
  use(options_);
  add(1, counting_prompt(30), 4);
  ASSERT_TRUE(step());  // 8 of 16 blocks
  add(2, counting_prompt(32, 100), 4);
  add(3, counting_prompt(2, 200), 4);
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 1))) << "two does not fit, three does not pass it";
  run_until_idle();
  EXPECT_EQ(scheduler_->stats().num_preemptions, 0);
}

TEST_F(SchedulerTest, ReportsPrefixHits) {
  add(1, counting_prompt(18), 2);
  run_until_idle();
  add(2, counting_prompt(18), 2);
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(2, 2)));
  run_until_idle();
  EXPECT_EQ(sink(1).finish().num_cached_tokens, 0);
  EXPECT_EQ(sink(2).finish().num_cached_tokens, 16);
  EXPECT_EQ(scheduler_->stats().prefix_queries, 36);
  EXPECT_EQ(scheduler_->stats().prefix_hits, 16);
}

TEST_F(SchedulerTest, OutputIsCachedForTheNextTurnOfAConversation) {
  add(1, counting_prompt(6), 8);
  run_until_idle();
  std::vector<TokenId> next_turn = counting_prompt(6);
  for (const TokenId token : sink(1).stream().tokens) next_turn.push_back(token);
  add(2, next_turn, 2);
  run_until_idle();
  EXPECT_EQ(sink(2).finish().num_cached_tokens, 12) << "of 14; the last was never computed";
}

TEST_F(SchedulerTest, SiblingsWaitForThePromptAndShareIt) {
  add(request(1, counting_prompt(40), 4, /*n=*/3));
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 32)));
  EXPECT_EQ(scheduler_->stats().num_waiting, 2);
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 8))) << "the prompt is not computed yet";
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 1), Pair(2, 4), Pair(3, 4)));
  run_until_idle();
  for (int32_t i = 0; i < 3; ++i) {
    const auto seed = 1 + static_cast<uint64_t>(i);
    EXPECT_EQ(sink(1).stream(i).tokens, tokens_alone(model_, counting_prompt(40), seed, 4));
    EXPECT_EQ(sink(1).finish(i).num_cached_tokens, i == 0 ? 0 : 36);
  }
}

TEST_F(SchedulerTest, SiblingsRunAtOnceWithThePrefixCacheOff) {
  options_.prefix_cache = false;
  use(options_);
  add(request(1, counting_prompt(8), 4, /*n=*/3));
  ASSERT_TRUE(step());
  EXPECT_THAT(last_batch_, ElementsAre(Pair(1, 8), Pair(2, 8), Pair(3, 8)));
  run_until_idle();
  EXPECT_EQ(scheduler_->stats().prefix_queries, 0);
}

TEST_F(SchedulerTest, EndsAtAStopTokenWithoutOutputtingIt) {
  const std::vector<TokenId> alone = tokens_alone(model_, counting_prompt(5), 1, 4);
  Request made = request(1, counting_prompt(5), 10);
  made.sampling.stop_token_ids = {999'999, alone[2]};
  add(std::move(made));
  run_until_idle();
  EXPECT_THAT(sink(1).stream().tokens, ElementsAre(alone[0], alone[1]));
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kStop);
  EXPECT_EQ(sink(1).finish().stop_token, alone[2]);
  EXPECT_TRUE(sink(1).finish().status.ok());
}

TEST_F(SchedulerTest, EndsAtMaxModelLen) {
  add(1, counting_prompt(60), 100);
  run_until_idle();
  EXPECT_EQ(sink(1).stream().tokens.size(), 4U);
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kLength);
}

TEST_F(SchedulerTest, AFaultEndsThatSequenceAlone) {
  add(1, counting_prompt(5), 4);
  add(2, counting_prompt(5, 100), 4);
  ASSERT_EQ(scheduler_->plan(now()).kind, Kind::kRun);
  absl::StatusOr<engine::StepOutput> output = executor_->execute(scheduler_->batch());
  ASSERT_TRUE(output.ok());
  output->tokens[0].status = internal_error("the logits are not finite");
  scheduler_->commit(*std::move(output), now());
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kError);
  EXPECT_EQ(message_of(sink(1).finish().status), "the logits are not finite");
  run_until_idle();
  EXPECT_EQ(sink(2).stream().tokens.size(), 4U);
  EXPECT_EQ(scheduler_->stats().num_blocks_cached, 2) << "two's, nothing of one's";
}

TEST_F(SchedulerTest, CancelFreesBlocksAtOnce) {
  add(request(1, counting_prompt(10), 5, /*n=*/2));
  ASSERT_TRUE(step());
  EXPECT_EQ(scheduler_->stats().num_blocks_used, 3);
  EXPECT_TRUE(scheduler_->cancel(1, FinishReason::kCancelled, cancelled("gone"), now()));
  EXPECT_EQ(scheduler_->stats().num_blocks_used, 0);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(sink(1).finish(0).reason, FinishReason::kCancelled);
  EXPECT_EQ(sink(1).finish(1).reason, FinishReason::kCancelled) << "it had not even started";
  EXPECT_EQ(sink(1).finish(1).first_scheduled, sink(1).finish(1).arrival);
  EXPECT_FALSE(scheduler_->cancel(1, FinishReason::kCancelled, cancelled("again"), now()));
}

TEST_F(SchedulerTest, FinishEndsOneSequenceAndItsSiblingsGoOn) {
  add(request(1, counting_prompt(10), 5, /*n=*/2));
  for (int32_t i = 0; i < 3; ++i) ASSERT_TRUE(step());
  ASSERT_FALSE(sink(1).stream(0).tokens.empty());
  EXPECT_TRUE(scheduler_->finish(1, 0, now()));
  EXPECT_EQ(sink(1).finish(0).reason, FinishReason::kStop);
  EXPECT_TRUE(sink(1).finish(0).status.ok());
  EXPECT_FALSE(scheduler_->finish(1, 0, now())) << "it has ended";
  EXPECT_FALSE(scheduler_->finish(77, 0, now())) << "nobody knows it";
  run_until_idle();
  EXPECT_EQ(sink(1).stream(1).tokens.size(), 5U);
  EXPECT_EQ(scheduler_->stats().num_blocks_used, 0);
}

TEST_F(SchedulerTest, CancelAllVoidsAPlannedStep) {
  add(1, counting_prompt(10), 5);
  add(2, counting_prompt(10), 5);
  ASSERT_EQ(scheduler_->plan(now()).kind, Kind::kRun);
  EXPECT_EQ(scheduler_->cancel_all(FinishReason::kError, unavailable("lost"), now()), 2);
  EXPECT_TRUE(scheduler_->idle());
  scheduler_->check_invariants();
  EXPECT_EQ(scheduler_->plan(now()).kind, Kind::kIdle);
  EXPECT_EQ(sink(2).stream().finishes.size(), 1U);
}

TEST_F(SchedulerTest, PlanEndsWhatIsPastItsDeadline) {
  Request runs = request(1, counting_prompt(4), 50);
  runs.deadline = now() + milliseconds(25);
  add(std::move(runs));
  options_.max_batch_size = 1;
  ASSERT_TRUE(step());  // at 0, 10 and 20 ms
  ASSERT_TRUE(step());
  ASSERT_TRUE(step());
  EXPECT_FALSE(step());
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kDeadline);
  EXPECT_EQ(sink(1).finish().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(sink(1).stream().tokens.size(), 3U);
  EXPECT_EQ(scheduler_->stats().num_blocks_used, 0);
}

TEST_F(SchedulerTest, AWaitingRequestMeetsItsDeadlineToo) {
  options_.max_batch_size = 1;
  use(options_);
  add(1, counting_prompt(4), 20);
  Request waits = request(2, counting_prompt(4), 20);
  waits.deadline = now() + milliseconds(15);
  add(std::move(waits));
  run_until_idle();
  EXPECT_EQ(sink(2).finish().reason, FinishReason::kDeadline);
  EXPECT_FALSE(sink(2).stream().started.has_value());
  EXPECT_EQ(sink(1).stream().tokens.size(), 20U);
}

TEST_F(SchedulerTest, AnIdleEngineWaitsForItsFirstBatchToFill) {
  options_.batch_timeout = milliseconds(10);
  use(options_);
  const TimePoint first = now();
  add(1, counting_prompt(4), 5);
  Decision decision = scheduler_->plan(now());
  EXPECT_EQ(decision.kind, Kind::kWaitUntil);
  EXPECT_EQ(decision.until, first + milliseconds(10));
  clock_.advance(milliseconds(4));
  add(2, counting_prompt(4), 5);
  EXPECT_EQ(scheduler_->plan(now()).until, first + milliseconds(10)) << "counts from the first";
  clock_.advance(milliseconds(6));
  ASSERT_TRUE(step());
  EXPECT_EQ(last_batch_.size(), 2U);
  add(3, counting_prompt(4), 5);
  ASSERT_TRUE(step());
  EXPECT_EQ(last_batch_.size(), 3U) << "a busy engine admits at once";
}

TEST_F(SchedulerTest, AFullBatchDoesNotWait) {
  options_.batch_timeout = milliseconds(10);
  use(options_);
  for (RequestId id = 1; id <= 4; ++id) add(id, counting_prompt(4), 1);
  EXPECT_TRUE(step());
}

TEST_F(SchedulerTest, TheWaitForABatchEndsAtADeadline) {
  options_.batch_timeout = milliseconds(10);
  use(options_);
  Request made = request(1, counting_prompt(4), 5);
  made.deadline = now() + milliseconds(3);
  add(std::move(made));
  EXPECT_EQ(scheduler_->plan(now()).until, now() + milliseconds(3));
  clock_.advance(milliseconds(3));
  EXPECT_EQ(scheduler_->plan(now()).kind, Kind::kIdle);
  EXPECT_EQ(sink(1).finish().reason, FinishReason::kDeadline);
}

TEST_F(SchedulerTest, LogitsComeWithTheFirstTokenAlone) {
  Request made = request(1, counting_prompt(40), 6);
  made.capture_logits = true;
  add(std::move(made));
  ASSERT_TRUE(step());
  ASSERT_TRUE(step());
  EXPECT_EQ(sink(1).stream().num_logits, 1);
  scheduler_->preempt_all();
  run_until_idle();
  EXPECT_EQ(sink(1).stream().num_logits, 1);
}

TEST_F(SchedulerTest, PreemptAllChangesNoToken) {
  for (RequestId id = 1; id <= 3; ++id) add(id, counting_prompt(7, static_cast<TokenId>(id)), 12);
  for (int32_t i = 0; !scheduler_->idle(); ++i) {
    step();
    if (i % 3 == 2) scheduler_->preempt_all();
  }
  for (RequestId id = 1; id <= 3; ++id) {
    const std::vector<TokenId> prompt = counting_prompt(7, static_cast<TokenId>(id));
    EXPECT_EQ(sink(id).stream().tokens, tokens_alone(model_, prompt, id, 12));
    EXPECT_GE(sink(id).finish().num_preemptions, 3);
  }
}

TEST(SchedulerDeathTest, APoolTooSmallForOneSequenceIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  SchedulerOptions options = small_options();
  options.num_blocks = 15;
  EXPECT_DEATH(Scheduler scheduler(options), "max_model_len");
}

}  // namespace
}  // namespace r1d::scheduler
