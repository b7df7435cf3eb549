// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "r1d/base/mutex.h"
#include "r1d/base/status.h"

#include "transport/grpc/convert.h"
#include "transport/grpc/dispatcher.h"
#include "transport/grpc/output_buffer.h"

namespace r1d::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

scheduler::TokenEvent token(int32_t index, TokenId id) {
  scheduler::TokenEvent event;
  event.index = index;
  event.token.token = id;
  return event;
}

scheduler::FinishEvent finish(int32_t index,
                              scheduler::FinishReason reason = scheduler::FinishReason::kLength,
                              absl::Status status = absl::OkStatus()) {
  scheduler::FinishEvent event;
  event.index = index;
  event.reason = reason;
  event.status = std::move(status);
  return event;
}

std::vector<TokenId> ids(const OutputPiece& piece) {
  std::vector<TokenId> ids;
  for (const auto& sampled : piece.tokens) ids.push_back(sampled.token);
  return ids;
}

TEST(OutputBufferTest, JoinsWhatCameAndCutsAtTheLimit) {
  OutputBuffer buffer(1);
  EXPECT_FALSE(buffer.has_piece());
  for (TokenId id = 1; id <= 5; ++id) buffer.add(token(0, id));
  buffer.add(finish(0));
  EXPECT_EQ(buffer.num_unread(), 5);
  OutputPiece piece = buffer.take(3);
  EXPECT_THAT(ids(piece), ElementsAre(1, 2, 3));
  EXPECT_FALSE(piece.finish.has_value());
  piece = buffer.take(3);
  EXPECT_THAT(ids(piece), ElementsAre(4, 5));
  EXPECT_TRUE(piece.finish.has_value());
  EXPECT_FALSE(buffer.has_piece());
  EXPECT_EQ(buffer.num_unread(), 0);
}

TEST(OutputBufferTest, TakesSequencesInTurn) {
  OutputBuffer buffer(2);
  for (TokenId id = 1; id <= 4; ++id) buffer.add(token(0, id));
  buffer.add(token(1, 9));
  const OutputPiece first = buffer.take(2);
  const OutputPiece second = buffer.take(2);
  EXPECT_NE(first.index, second.index);
  EXPECT_EQ(buffer.take(9).index, 0);
  EXPECT_FALSE(buffer.has_piece());
}

TEST(OutputBufferTest, IsCompleteOnceEverySequenceHasFinished) {
  OutputBuffer buffer(2);
  buffer.add(finish(1));
  EXPECT_FALSE(buffer.complete());
  EXPECT_EQ(buffer.take(1).index, 1);
  buffer.add(finish(0));
  EXPECT_TRUE(buffer.complete());
  EXPECT_TRUE(buffer.has_piece());
  EXPECT_TRUE(buffer.status().ok());
}

TEST(OutputBufferTest, CountsAFaultOnlyWhenNoSequenceEndedWell) {
  using scheduler::FinishReason;
  OutputBuffer some(2);
  some.add(finish(0, FinishReason::kError, internal_error("a")));
  some.add(finish(1));
  EXPECT_TRUE(some.status().ok());
  OutputBuffer all(2);
  all.add(finish(1, FinishReason::kError, internal_error("b")));
  all.add(finish(0, FinishReason::kError, internal_error("a")));
  EXPECT_EQ(message_of(all.status()), "a");
}

TEST(OutputBufferTest, PutsWhatEndsTheWholeRequestFirst) {
  using scheduler::FinishReason;
  OutputBuffer buffer(3);
  buffer.add(finish(0));
  buffer.add(finish(1, FinishReason::kError, internal_error("a")));
  buffer.add(finish(2, FinishReason::kDeadline, deadline_exceeded("too late")));
  EXPECT_TRUE(absl::IsDeadlineExceeded(buffer.status()));
}

TEST(ConvertTest, LeavesUnsetFieldsUnset) {
  const admission::GenerateRequest request = request_from_proto({});
  EXPECT_FALSE(request.prompt_text.has_value());
  EXPECT_FALSE(request.prompt_token_ids.has_value());
  EXPECT_FALSE(request.model.has_value());
  EXPECT_FALSE(request.temperature.has_value());
  EXPECT_FALSE(request.max_tokens.has_value());
  EXPECT_FALSE(request.seed.has_value());
  EXPECT_FALSE(request.logprobs.has_value());
  EXPECT_EQ(request.repetition_penalty, 1);
  EXPECT_EQ(request.n, 1);
}

TEST(ConvertTest, KeepsAZeroThatWasSet) {
  v1::GenerateRequest message;
  message.mutable_prompt()->set_text("");
  v1::SamplingParams& sampling = *message.mutable_sampling();
  sampling.set_temperature(0);
  sampling.set_top_p(0);
  sampling.set_top_k(0);
  sampling.set_repetition_penalty(0);
  sampling.set_seed(0);
  sampling.set_logprobs(0);
  sampling.set_max_tokens(0);
  sampling.set_n(0);
  const admission::GenerateRequest request = request_from_proto(message);
  EXPECT_EQ(request.prompt_text, "");
  EXPECT_EQ(request.temperature, 0);
  EXPECT_EQ(request.top_p, 0);
  EXPECT_EQ(request.top_k, 0);
  EXPECT_EQ(request.repetition_penalty, 0);
  EXPECT_EQ(request.seed, 0U);
  EXPECT_EQ(request.logprobs, 0);
  EXPECT_EQ(request.max_tokens, 0);
  EXPECT_EQ(request.n, 0);
}

TEST(ConvertTest, CarriesEveryField) {
  v1::GenerateRequest message;
  message.mutable_prompt()->mutable_token_ids()->add_ids(4);
  message.set_model("m");
  message.set_priority(-3);
  message.set_cache_salt("salt");
  message.set_request_id("label");
  v1::SamplingParams& sampling = *message.mutable_sampling();
  sampling.set_temperature(0.1);
  sampling.set_top_p(0.2);
  sampling.set_top_k(3);
  sampling.set_min_p(0.4);
  sampling.set_repetition_penalty(1.5);
  sampling.set_frequency_penalty(0.6);
  sampling.set_presence_penalty(0.7);
  (*sampling.mutable_logit_bias())[9] = 1;
  (*sampling.mutable_logit_bias())[8] = -1;
  sampling.set_seed(10);
  sampling.set_logprobs(11);
  sampling.add_stop_token_ids(12);
  sampling.set_ignore_eos(true);
  sampling.set_min_tokens(13);
  sampling.set_max_tokens(14);
  sampling.set_n(2);
  const admission::GenerateRequest request = request_from_proto(message);
  EXPECT_THAT(*request.prompt_token_ids, ElementsAre(4));
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.priority, -3);
  EXPECT_EQ(request.cache_salt, "salt");
  EXPECT_EQ(request.request_id, "label");
  EXPECT_EQ(request.temperature, 0.1);
  EXPECT_EQ(request.top_p, 0.2);
  EXPECT_EQ(request.top_k, 3);
  EXPECT_EQ(request.min_p, 0.4);
  EXPECT_EQ(request.repetition_penalty, 1.5);
  EXPECT_EQ(request.frequency_penalty, 0.6);
  EXPECT_EQ(request.presence_penalty, 0.7);
  EXPECT_THAT(request.logit_bias, ElementsAre(Pair(8, -1.F), Pair(9, 1.F)));
  EXPECT_EQ(request.seed, 10U);
  EXPECT_EQ(request.logprobs, 11);
  EXPECT_THAT(request.stop_token_ids, ElementsAre(12));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.min_tokens, 13);
  EXPECT_EQ(request.max_tokens, 14);
  EXPECT_EQ(request.n, 2);
}

// Counts its runs and posts itself again until it has had enough.
class Repeating final : public Dispatcher::Task, public std::enable_shared_from_this<Repeating> {
 public:
  explicit Repeating(Dispatcher& dispatcher) : dispatcher_(dispatcher) {}
  void run() override {
    const base::MutexLock lock(mu_);
    if (++count_ < 1000) {
      dispatcher_.post(shared_from_this());
    } else {
      done_.notify_all();
    }
  }
  void wait() {
    const base::MutexLock lock(mu_);
    while (count_ < 1000) done_.wait(mu_);
  }

 private:
  Dispatcher& dispatcher_;
  base::Mutex mu_;
  base::CondVar done_;
  int32_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

TEST(DispatcherTest, RunsEveryPostAlsoThoseMadeWhileRunning) {
  Dispatcher dispatcher;
  const auto first = std::make_shared<Repeating>(dispatcher);
  const auto second = std::make_shared<Repeating>(dispatcher);
  dispatcher.post(first);
  dispatcher.post(second);
  first->wait();
  second->wait();
}

class Counting final : public Dispatcher::Task {
 public:
  explicit Counting(int32_t& count) : count_(count) {}
  void run() override { ++count_; }

 private:
  int32_t& count_;
};

TEST(DispatcherTest, RunsWhatIsQueuedBeforeItStops) {
  int32_t runs = 0;
  {
    Dispatcher dispatcher;
    for (int32_t i = 0; i < 100; ++i) dispatcher.post(std::make_shared<Counting>(runs));
  }
  EXPECT_EQ(runs, 100);
}

}  // namespace
}  // namespace r1d::transport
