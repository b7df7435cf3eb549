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
  const admission::GenerateRequest request = request_from_proto(v1::GenerateRequest());
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
  sampling.add_stop("END");
  sampling.set_include_stop(true);
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
  EXPECT_THAT(request.stop, ElementsAre("END"));
  EXPECT_TRUE(request.include_stop);
}

TEST(ConvertTest, CarriesEveryFieldOfAChat) {
  v1::ChatRequest message;
  v1::Message& user = *message.add_messages();
  user.set_role("user");
  user.set_content("What is it?");
  user.set_name("ann");
  v1::Message& assistant = *message.add_messages();
  assistant.set_role("assistant");
  assistant.set_reasoning("left out");
  v1::ToolCall& call = *assistant.add_tool_calls();
  call.set_id("1");
  call.set_type("function");
  call.set_name("look");
  call.set_arguments("{}");
  message.add_messages()->set_tool_call_id("1");
  v1::Tool& tool = *message.add_tools();
  tool.set_name("look");
  tool.set_description("looks");
  tool.set_parameters("{}");
  message.set_thinking_budget(0);
  message.set_template_variables("{}");
  message.set_keep_reasoning_in_content(true);
  message.set_cache_salt("salt");
  const admission::GenerateRequest request = request_from_proto(message);
  ASSERT_TRUE(request.chat.has_value());
  const admission::ChatInput& chat = *request.chat;
  ASSERT_EQ(chat.messages.size(), 3U);
  EXPECT_EQ(chat.messages[0].role, "user");
  EXPECT_EQ(chat.messages[0].content, "What is it?");
  EXPECT_EQ(chat.messages[0].name, "ann");
  ASSERT_EQ(chat.messages[1].tool_calls.size(), 1U);
  EXPECT_EQ(chat.messages[1].tool_calls[0].name, "look");
  EXPECT_EQ(chat.messages[2].tool_call_id, "1");
  ASSERT_EQ(chat.tools.size(), 1U);
  EXPECT_EQ(chat.tools[0].description, "looks");
  EXPECT_EQ(chat.thinking_budget, 0);
  EXPECT_TRUE(chat.keep_reasoning_in_content);
  EXPECT_EQ(request.cache_salt, "salt");
  EXPECT_FALSE(request.prompt_text.has_value());
}

using chat::OutputEvent;

admission::ReadOutput two_calls() {
  using Kind = OutputEvent::Kind;
  admission::ReadOutput output;
  output.events = {{.kind = Kind::kReasoning, .text = "hm"},
                   {.kind = Kind::kContent, .text = "see"},
                   {.kind = Kind::kToolCallBegin, .call_idx = 0, .type = "function", .name = "a"},
                   {.kind = Kind::kToolCallArguments, .text = "{\"x\"", .call_idx = 0},
                   {.kind = Kind::kToolCallArguments, .text = ": 1}", .call_idx = 0},
                   {.kind = Kind::kToolCallEnd, .call_idx = 0},
                   {.kind = Kind::kToolCallBegin, .call_idx = 1, .type = "function", .name = "b"},
                   {.kind = Kind::kToolCallArguments, .text = "{oops", .call_idx = 1},
                   {.kind = Kind::kToolCallEnd, .call_idx = 1, .malformed = true}};
  output.finish = scheduler::FinishEvent{};
  output.num_tool_calls = 2;
  return output;
}

TEST(ConvertTest, AStreamedToolCallSaysItsNameOnceAndIsTheWholeOne) {
  const AnswerContext context{.logprobs = false, .call_id = "call-x"};
  v1::ChatResponse streamed;
  EXPECT_TRUE(fill_response(3, two_calls(), context, streamed));
  ASSERT_EQ(streamed.tool_calls_size(), 2);
  EXPECT_EQ(streamed.tool_calls(0).id(), "call-x-3-0");
  EXPECT_EQ(streamed.tool_calls(0).name(), "a");
  EXPECT_EQ(streamed.tool_calls(0).arguments(), "{\"x\": 1}");
  EXPECT_TRUE(streamed.tool_calls(1).malformed());
  EXPECT_EQ(streamed.finish().reason(), v1::FINISH_REASON_TOOL_CALLS);

  v1::ChatChoice whole;
  whole.set_index(3);
  add_to_choice(two_calls(), context, whole);
  EXPECT_EQ(whole.message().reasoning(), "hm");
  EXPECT_EQ(whole.message().content(), "see");
  ASSERT_EQ(whole.message().tool_calls_size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(whole.message().tool_calls(i).id(), streamed.tool_calls(i).id());
    EXPECT_EQ(whole.message().tool_calls(i).arguments(), streamed.tool_calls(i).arguments());
    EXPECT_EQ(whole.message().tool_calls(i).malformed(), streamed.tool_calls(i).malformed());
  }
}

TEST(ConvertTest, NothingForTheClientIsNoMessage) {
  v1::GenerateResponse message;
  EXPECT_FALSE(fill_response(0, {}, {}, message));
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
