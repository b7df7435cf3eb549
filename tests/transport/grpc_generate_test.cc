// SPDX-License-Identifier: Apache-2.0
#include <random>
#include <thread>

#include <gmock/gmock.h>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "tests/transport/grpc_harness.h"

namespace r1d::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(GrpcGenerateTest, StreamsTokensAndFinishesWithUsageAndTimings) {
  Harness harness;
  harness.load_model();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 5));
  const StreamResult result = read_all(*reader);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  ASSERT_EQ(result.sequences.size(), 1U);
  EXPECT_THAT(result.sequences[0].tokens, ElementsAre(11, 12, 13, 14, 15));
  EXPECT_TRUE(result.sequences[0].logprobs.empty());

  const v1::Finish& finish = *result.sequences[0].finish;
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(finish.has_stop_token_id());
  EXPECT_EQ(finish.usage().prompt_tokens(), 2);
  EXPECT_EQ(finish.usage().output_tokens(), 5);
  EXPECT_GE(finish.timings().queue_seconds(), 0);
  EXPECT_GT(finish.timings().time_to_first_token_seconds(), 0);
  EXPECT_GE(finish.timings().total_seconds(), finish.timings().time_to_first_token_seconds());
  EXPECT_EQ(finish.message(), "");

  const auto& metadata = context.GetServerInitialMetadata();
  const auto id = metadata.find("x-request-id");
  ASSERT_NE(id, metadata.end());
  EXPECT_EQ(std::string(id->second.data(), id->second.size()), result.request_id);
}

TEST(GrpcGenerateTest, SendsATokenAsSoonAsItExists) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 3));
  harness.executor.wait_until_held();
  harness.executor.pass_one_step();
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));  // while the second step is held
  EXPECT_THAT(message.token_ids(), ElementsAre(11));
  EXPECT_FALSE(message.has_finish());
  harness.executor.open_gate();
  StreamResult rest = read_all(*reader);
  EXPECT_TRUE(rest.status.ok());
  EXPECT_THAT(rest.sequences[0].tokens, ElementsAre(12, 13));
}

TEST(GrpcGenerateTest, NamesTheStopToken) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 100);
  request.mutable_sampling()->add_stop_token_ids(13);
  const StreamResult result = generate(*harness.stub(), request);
  ASSERT_TRUE(result.status.ok());
  EXPECT_THAT(result.sequences[0].tokens, ElementsAre(11, 12));
  EXPECT_EQ(result.sequences[0].finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(result.sequences[0].finish->stop_token_id(), 13);
  EXPECT_EQ(result.sequences[0].finish->usage().output_tokens(), 2);
}

TEST(GrpcGenerateTest, KeepsTheSequencesOfOneRequestApart) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 200);
  request.mutable_sampling()->set_n(3);
  const StreamResult result = generate(*harness.stub(), request);
  ASSERT_TRUE(result.status.ok());
  ASSERT_EQ(result.sequences.size(), 3U);
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(result.sequences[i].tokens, expected_tokens(10, i, 200));
    EXPECT_TRUE(result.sequences[i].finish.has_value());
  }
}

TEST(GrpcGenerateTest, PassesLogProbabilitiesOn) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 2);
  request.mutable_sampling()->set_logprobs(0);
  const StreamResult chosen = generate(*harness.stub(), request);
  ASSERT_EQ(chosen.sequences[0].logprobs.size(), 2U);
  EXPECT_EQ(chosen.sequences[0].logprobs[1].token_id(), 12);
  EXPECT_EQ(chosen.sequences[0].logprobs[1].logprob(), testing::FakeExecutor::logprob_of(12));
  EXPECT_EQ(chosen.sequences[0].logprobs[1].top_size(), 0);

  request.mutable_sampling()->set_logprobs(3);
  const StreamResult top = generate(*harness.stub(), request);
  ASSERT_EQ(top.sequences[0].logprobs[0].top_size(), 3);
  EXPECT_EQ(top.sequences[0].logprobs[0].top(2).token_id(), 5);
  EXPECT_EQ(top.sequences[0].logprobs[0].top(2).logprob(), testing::FakeExecutor::logprob_of(5));
}

TEST(GrpcGenerateTest, AnswersOnceWithAllSequencesAndTheirUsage) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 4);
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_logprobs(1);
  grpc::ClientContext context;
  v1::GenerateOnceResponse response;
  const grpc::Status status = harness.stub()->GenerateOnce(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.choices_size(), 2);
  EXPECT_THAT(response.choices(0).token_ids(), ElementsAre(11, 12, 13, 14));
  EXPECT_THAT(response.choices(1).token_ids(), ElementsAre(12, 14, 16, 18));
  EXPECT_EQ(response.choices(1).index(), 1);
  EXPECT_EQ(response.choices(1).logprobs_size(), 4);
  EXPECT_EQ(response.choices(1).finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(response.usage().prompt_tokens(), 2);
  EXPECT_EQ(response.usage().output_tokens(), 8);
  EXPECT_EQ(context.GetServerInitialMetadata().count("x-request-id"), 1U);
  EXPECT_NE(response.request_id(), "");
}

TEST(GrpcGenerateTest, EndsTheStreamOfASequenceThatFails) {
  Harness harness;
  harness.load_model();
  harness.executor.fail_at(13);
  const StreamResult result = generate(*harness.stub(), counting_request(10, 9));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(result.status.error_message(), "the logits are NaN");
  EXPECT_THAT(result.sequences[0].tokens, ElementsAre(11, 12));
  EXPECT_EQ(result.sequences[0].finish->reason(), v1::FINISH_REASON_ERROR);

  const StreamResult other = generate(*harness.stub(), counting_request(20, 3));
  EXPECT_TRUE(other.status.ok()) << "others are unaffected";
}

TEST(GrpcGenerateTest, LetsTheOtherSequencesOfARequestFinishWhenOneFails) {
  Harness harness;
  harness.load_model();
  harness.executor.fail_at(13);  // of sequence 0; sequence 1 counts 12, 14, 16
  v1::GenerateRequest request = counting_request(10, 3);
  request.mutable_sampling()->set_n(2);
  const StreamResult result = generate(*harness.stub(), request);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.sequences[0].finish->reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(result.sequences[0].finish->message(), "the logits are NaN");
  EXPECT_EQ(result.sequences[1].finish->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(result.sequences[1].tokens, ElementsAre(12, 14, 16));
}

TEST(GrpcGenerateTest, SaysUnavailableWhenTheEngineIsLost) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 3));
  harness.executor.wait_until_held();
  harness.executor.break_engine(internal_error("device 3 fell off the bus"));
  harness.executor.open_gate();
  EXPECT_EQ(read_all(*reader).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(GrpcGenerateTest, CancelsTheRequestWhenTheClientDoes) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 30000));
  harness.executor.wait_until_held();
  context.TryCancel();
  EXPECT_EQ(read_all(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  harness.server->shutdown(std::chrono::minutes(4));  // returns once the call has ended here too
  harness.executor.open_gate();
  EXPECT_EQ(harness.drain(), 0);
  EXPECT_LT(harness.executor.progress(), 5U) << "the sequence went on without its client";
  EXPECT_EQ(harness.stats().num_blocks_used, 0);
  EXPECT_EQ(harness.metric(R"(r1d_rpc_total{code="CANCELLED",method="Generate"})"), "1");
}

// gRPC would be done with the call when the message comes, which was a use after free.
TEST(GrpcGenerateTest, AClientMayLeaveWhileItsMessageIsBeingMade) {
  if (!base::kFaultsCompiledIn) GTEST_SKIP() << "no fault points in this build";
  Harness harness;
  harness.load_model();
  ASSERT_TRUE(base::arm_faults("grpc.message=delay:200ms@1").ok());
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 5));
  reader->WaitForInitialMetadata();
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  grpc::ClientContext next;
  const auto other = harness.stub()->Generate(&next, counting_request(10, 5));
  EXPECT_TRUE(read_all(*other).status.ok());
  harness.drain();
  base::clear_faults();
}

TEST(GrpcGenerateTest, CancelsTheRequestsOfAClientThatDisconnects) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  {
    grpc::ClientContext context;
    const auto reader = harness.stub()->Generate(&context, counting_request(10, 30000));
    harness.executor.wait_until_held();
  }
  harness.server->shutdown(std::chrono::minutes(4));
  harness.executor.open_gate();
  EXPECT_EQ(harness.drain(), 0);
  EXPECT_LT(harness.executor.progress(), 5U);
}

TEST(GrpcGenerateTest, EndsAtTheClientsDeadline) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateOnceResponse response;
  const auto status =
      harness.stub()->GenerateOnce(&context, counting_request(10, 30000), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  harness.server->shutdown(std::chrono::minutes(4));
  harness.executor.open_gate();
  EXPECT_EQ(harness.drain(), 0);
  EXPECT_LT(harness.executor.progress(), 5U);
  EXPECT_EQ(harness.metric(R"(r1d_rpc_total{code="DEADLINE_EXCEEDED",method="GenerateOnce"})"),
            "1");
}

TEST(GrpcGenerateTest, EndsAtTheServersOwnLimitAndSaysHowFarItCame) {
  GrpcOptions options = harness_grpc_options();
  options.max_request_time = std::chrono::minutes(10);
  Harness harness(options);
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 30000));
  harness.executor.wait_until_held();
  harness.clock.advance(std::chrono::minutes(11));
  harness.executor.open_gate();
  const StreamResult result = read_all(*reader);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(result.sequences.at(0).finish.has_value());
  EXPECT_EQ(result.sequences[0].finish->reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_LT(result.sequences[0].finish->usage().output_tokens(), 30000);
}

// With 20 log probabilities a token is some 300 bytes, so that a reader that rests soon fills the
// 64 KiB that HTTP/2 and gRPC hold for it.
v1::GenerateRequest bulky_request() {
  v1::GenerateRequest request = counting_request(10, 20000);
  request.mutable_sampling()->set_logprobs(20);
  return request;
}

std::shared_ptr<grpc::Channel> narrow_channel(const Harness& harness) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 10);
  return harness.channel(arguments);
}

TEST(GrpcGenerateTest, CancelsASlowReaderAndServesTheOthers) {
  GrpcOptions options = harness_grpc_options();
  options.stream_buffer_tokens = 256;
  Harness harness(options);
  harness.load_model();
  const auto slow = v1::InferenceService::NewStub(narrow_channel(harness));
  grpc::ClientContext context;
  const auto reader = slow->Generate(&context, bulky_request());
  reader->WaitForInitialMetadata();  // accepted; nothing is read

  v1::GenerateOnceResponse response;
  grpc::ClientContext other;
  EXPECT_TRUE(harness.stub()->GenerateOnce(&other, counting_request(10, 500), &response).ok());
  EXPECT_EQ(harness.drain(), 0) << "the slow reader held the engine up";
  const StreamResult result = read_all(*reader);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.status.error_message(), HasSubstr("slow consumer"));
  for (const Collected& sequence : result.sequences) {  // none if nothing was written in time
    EXPECT_LT(sequence.tokens.size(), 20000U);
    EXPECT_FALSE(sequence.finish.has_value());
  }
  EXPECT_EQ(harness.metric("r1d_slow_consumers_total"), "1");
}

TEST(GrpcGenerateTest, GivesUpAReaderThatTakesNothingOnceTheEngineIsDone) {
  for (const int32_t buffer_tokens : {256, 1 << 20}) {  // cut early; complete but unread
    GrpcOptions options = harness_grpc_options();
    options.stream_buffer_tokens = buffer_tokens;
    options.max_tail_time = std::chrono::milliseconds(50);
    Harness harness(options);
    harness.load_model();
    const auto slow = v1::InferenceService::NewStub(narrow_channel(harness));
    grpc::ClientContext context;
    const auto reader = slow->Generate(&context, bulky_request());
    reader->WaitForInitialMetadata();
    EXPECT_EQ(harness.drain(), 0);
    harness.server->shutdown(std::chrono::hours(1));  // returns because the call has ended
    EXPECT_FALSE(read_all(*reader).status.ok());
  }
}

TEST(GrpcGenerateTest, ServesAReaderThatOnlyRests) {
  GrpcOptions options = harness_grpc_options();
  options.stream_buffer_tokens = 1 << 20;
  Harness harness(options);
  harness.load_model();
  const auto slow = v1::InferenceService::NewStub(narrow_channel(harness));
  grpc::ClientContext context;
  const auto reader = slow->Generate(&context, bulky_request());
  reader->WaitForInitialMetadata();
  EXPECT_EQ(harness.drain(), 0);  // all is made before anything is read
  const StreamResult result = read_all(*reader);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.sequences.at(0).tokens, expected_tokens(10, 0, 20000));
  EXPECT_EQ(result.sequences[0].logprobs.size(), 20000U);
}

TEST(GrpcGenerateTest, ServesAHundredStreamsAtOnce) {
  constexpr uint64_t kSeed = 7;
  RecordProperty("seed", std::to_string(kSeed));
  Harness harness;
  harness.load_model();
  const auto stub = harness.stub();
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 100; ++t) {
    threads.emplace_back([&stub, t] {
      std::mt19937_64 random(kSeed * 1000 + t);
      const auto last = static_cast<int32_t>(3 + random() % 90);
      const auto count = static_cast<int32_t>(1 + random() % 300);
      const uint64_t seed = random();
      v1::GenerateRequest request = counting_request(last, count);
      request.mutable_sampling()->set_seed(seed);
      const StreamResult result = generate(*stub, request);
      EXPECT_TRUE(result.status.ok()) << result.status.error_message();
      ASSERT_EQ(result.sequences.size(), 1U);
      EXPECT_EQ(result.sequences[0].tokens, expected_tokens(last, seed, count));
      EXPECT_TRUE(result.sequences[0].finish.has_value());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(harness.drain(), 0);
  EXPECT_EQ(harness.stats().num_blocks_used, 0);
  harness.server->shutdown(std::chrono::minutes(4));  // a call is counted once it has ended here
  EXPECT_EQ(harness.metric("r1d_streams_open"), "0");
}

}  // namespace
}  // namespace r1d::transport
