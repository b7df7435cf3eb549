// SPDX-License-Identifier: Apache-2.0

#include <gmock/gmock.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/generic/generic_stub.h>

#include "grpc/health/v1/health.grpc.pb.h"

#include "r1d/base/status.h"
#include "r1d/base/version.h"

#include "tests/transport/grpc_harness.h"

namespace r1d::transport {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace health = ::grpc::health::v1;

constexpr char kServiceName[] = "r1d.v1.InferenceService";

grpc::Status generate_once(Harness& harness,
                           const v1::GenerateRequest& request,
                           grpc::ClientContext& context) {
  v1::GenerateOnceResponse response;
  return harness.stub()->GenerateOnce(&context, request, &response);
}

grpc::Status generate_once(Harness& harness, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return generate_once(harness, request, context);
}

void expect_retry_advice(const grpc::Status& status, const grpc::ClientContext& context) {
  const auto retry = detail_of<google::rpc::RetryInfo>(status);
  ASSERT_TRUE(retry.has_value());
  EXPECT_GE(retry->retry_delay().seconds(), 1);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, trailers.end());
  EXPECT_EQ(std::stoi(std::string(pushback->second.data(), pushback->second.size())),
            retry->retry_delay().seconds() * 1000);
}

TEST(GrpcServerTest, RefusesWhileTheModelIsLoading) {
  Harness harness;
  grpc::ClientContext context;
  const grpc::Status status = generate_once(harness, counting_request(10, 1), context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the model is still loading");
  expect_retry_advice(status, context);
  const StreamResult stream = generate(*harness.stub(), counting_request(10, 1));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(stream.sequences.empty());
}

TEST(GrpcServerTest, RefusesNewWorkWhileDrainingAndFinishesWhatRuns) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext running;
  const auto reader = harness.stub()->Generate(&running, counting_request(10, 3));
  harness.executor.wait_until_held();
  harness.frontend.begin_drain();
  grpc::ClientContext context;
  const grpc::Status status = generate_once(harness, counting_request(10, 1), context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
  expect_retry_advice(status, context);
  harness.executor.open_gate();
  EXPECT_TRUE(read_all(*reader).status.ok());
}

TEST(GrpcServerTest, SaysWhenToRetryWhenTheQueueIsFull) {
  scheduler::SchedulerOptions options = harness_scheduler_options();
  options.max_batch_size = 1;
  options.max_waiting_requests = 2;
  Harness harness(harness_grpc_options(), options);
  harness.load_model();
  harness.executor.close_gate();
  const auto stub = harness.stub();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int32_t i = 0; i < 3; ++i) {  // one runs, two wait
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->Generate(contexts.back().get(), counting_request(10, 2)));
    readers.back()->WaitForInitialMetadata();
    if (i == 0) harness.executor.wait_until_held();
  }
  grpc::ClientContext context;
  const grpc::Status status = generate_once(harness, counting_request(10, 2), context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  expect_retry_advice(status, context);
  harness.executor.open_gate();
  for (const auto& reader : readers) EXPECT_TRUE(read_all(*reader).status.ok());
  harness.server->shutdown(std::chrono::minutes(4));  // a call is counted once it has ended here
  EXPECT_EQ(harness.metric(R"(r1d_rpc_total{code="RESOURCE_EXHAUSTED",method="GenerateOnce"})"),
            "1");
}

TEST(GrpcServerTest, NamesTheBadFieldInTheStatusAndItsDetail) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 2);
  request.mutable_sampling()->set_top_p(1.5);
  const grpc::Status status = generate_once(harness, request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "sampling.top_p: must be in (0, 1], is 1.5");
  const auto bad = detail_of<google::rpc::BadRequest>(status);
  ASSERT_TRUE(bad.has_value());
  ASSERT_EQ(bad->field_violations_size(), 1);
  EXPECT_EQ(bad->field_violations(0).field(), "sampling.top_p");
  EXPECT_EQ(bad->field_violations(0).description(), "must be in (0, 1], is 1.5");
}

// The paths in errors are paths of this API: each can be followed through the descriptors.
TEST(GrpcServerTest, NamesFieldsByPathsThatExist) {
  for (const char* path : {"prompt",
                           "prompt.text",
                           "prompt.token_ids",
                           "prompt.token_ids.ids",
                           "model",
                           "priority",
                           "cache_salt",
                           "request_id",
                           "sampling.temperature",
                           "sampling.top_p",
                           "sampling.top_k",
                           "sampling.min_p",
                           "sampling.repetition_penalty",
                           "sampling.frequency_penalty",
                           "sampling.presence_penalty",
                           "sampling.logit_bias",
                           "sampling.logprobs",
                           "sampling.stop_token_ids",
                           "sampling.min_tokens",
                           "sampling.max_tokens",
                           "sampling.n"}) {
    const google::protobuf::Descriptor* message = v1::GenerateRequest::descriptor();
    std::string rest = path;
    while (!rest.empty()) {
      const std::string name = rest.substr(0, rest.find('.'));
      rest.erase(0, name.size() + 1);
      ASSERT_NE(message, nullptr) << path;
      const auto* field = message->FindFieldByName(name);
      ASSERT_NE(field, nullptr) << path;
      message = field->message_type();
    }
  }
}

TEST(GrpcServerTest, AnswersNotFoundForAnotherModel) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 2);
  request.set_model("another");
  EXPECT_EQ(generate_once(harness, request).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(GrpcServerTest, RefusesACompressedRequest) {
  Harness harness;
  harness.load_model();
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    v1::GenerateRequest request = counting_request(10, 2);
    for (int32_t i = 0; i < 5000; ++i) request.mutable_prompt()->mutable_token_ids()->add_ids(10);
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    const grpc::Status status = generate_once(harness, request, context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
  }
}

TEST(GrpcServerTest, RefusesAnOversizeRequest) {
  GrpcOptions options = harness_grpc_options();
  options.max_request_bytes = 4096;
  Harness harness(options);
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 2);
  for (int32_t i = 0; i < 5000; ++i) request.mutable_prompt()->mutable_token_ids()->add_ids(10);
  EXPECT_EQ(generate_once(harness, request).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(generate_once(harness, counting_request(10, 2)).ok());
}

TEST(GrpcServerTest, DescribesTheModelOnceLoaded) {
  Harness harness;
  v1::GetModelResponse response;
  grpc::ClientContext early;
  EXPECT_EQ(harness.stub()->GetModel(&early, {}, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  harness.load_model();
  grpc::ClientContext context;
  ASSERT_TRUE(harness.stub()->GetModel(&context, {}, &response).ok());
  EXPECT_EQ(response.name(), "counting");
  EXPECT_EQ(response.architecture(), "CountingForCausalLM");
  EXPECT_EQ(response.num_parameters(), 7);
  EXPECT_EQ(response.last_token_id(), 95);
  EXPECT_THAT(response.eos_token_ids(), ElementsAre(0));
  EXPECT_FALSE(response.has_tokenizer());
  EXPECT_EQ(response.default_sampling().temperature(), 1);
  v1::GetModelRequest other;
  other.set_model("another");
  grpc::ClientContext third;
  EXPECT_EQ(harness.stub()->GetModel(&third, other, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

v1::GetServerInfoResponse server_info(const Harness& harness) {
  v1::GetServerInfoResponse response;
  grpc::ClientContext context;
  EXPECT_TRUE(harness.stub()->GetServerInfo(&context, {}, &response).ok());
  return response;
}

TEST(GrpcServerTest, DescribesItselfInEveryState) {
  Harness harness;
  v1::GetServerInfoResponse info = server_info(harness);
  EXPECT_EQ(info.version(), base::version());
  EXPECT_EQ(info.state(), v1::SERVER_STATE_LOADING);
  EXPECT_EQ(info.limits().max_request_bytes(), 4 << 20);
  EXPECT_EQ(info.limits().max_n(), 0);
  EXPECT_FALSE(info.has_load());

  harness.load_model();
  info = server_info(harness);
  EXPECT_EQ(info.state(), v1::SERVER_STATE_SERVING);
  EXPECT_EQ(info.device(), "fake");
  EXPECT_EQ(info.world_size(), 1);
  EXPECT_EQ(info.num_blocks(), 1024);
  EXPECT_EQ(info.limits().max_n(), 8);
  EXPECT_EQ(info.limits().max_model_len(), 32768);
  EXPECT_TRUE(info.has_load());
  EXPECT_EQ(info.load().num_running(), 0);
  EXPECT_GT(info.uptime_seconds(), 0);

  harness.frontend.begin_drain();
  EXPECT_EQ(server_info(harness).state(), v1::SERVER_STATE_DRAINING);
  harness.frontend.fail(internal_error("lost"));
  EXPECT_EQ(server_info(harness).state(), v1::SERVER_STATE_FAILED);
}

health::HealthCheckResponse::ServingStatus check_health(const Harness& harness,
                                                        const std::string& service) {
  health::HealthCheckRequest request;
  request.set_service(service);
  health::HealthCheckResponse response;
  grpc::ClientContext context;
  const auto stub = health::Health::NewStub(harness.channel());
  EXPECT_TRUE(stub->Check(&context, request, &response).ok());
  return response.status();
}

TEST(GrpcServerTest, ReportsHealthOverallAndOfTheService) {
  Harness harness;
  for (const char* service : {"", kServiceName}) {
    EXPECT_EQ(check_health(harness, service), health::HealthCheckResponse::NOT_SERVING);
  }
  harness.load_model();
  for (const char* service : {"", kServiceName}) {
    EXPECT_EQ(check_health(harness, service), health::HealthCheckResponse::SERVING);
  }
  harness.server->set_serving(false);
  for (const char* service : {"", kServiceName}) {
    EXPECT_EQ(check_health(harness, service), health::HealthCheckResponse::NOT_SERVING);
  }
}

TEST(GrpcServerTest, AnswersNotFoundForTheHealthOfAnUnknownService) {
  Harness harness;
  health::HealthCheckRequest request;
  request.set_service("another");
  health::HealthCheckResponse response;
  grpc::ClientContext context;
  const auto stub = health::Health::NewStub(harness.channel());
  EXPECT_EQ(stub->Check(&context, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(GrpcServerTest, TellsHealthWatchersOfEveryChangeAndDoesNotWaitForThem) {
  Harness harness;
  health::HealthCheckRequest request;
  request.set_service(kServiceName);
  health::HealthCheckResponse response;
  grpc::ClientContext context;
  const auto stub = health::Health::NewStub(harness.channel());
  const auto watch = stub->Watch(&context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  harness.load_model();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  harness.server->set_serving(false);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  harness.server->shutdown(std::chrono::hours(1));  // the watch is still open
  while (watch->Read(&response)) {
    EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  }
  EXPECT_FALSE(watch->Finish().ok());
}

// The reflection library ships no headers, but its descriptors are linked.
class Reflection {
 public:
  explicit Reflection(const Harness& harness) : stub_(harness.channel()) {}

  // Sends one request with this string field set; the reply in protobuf's text format, or the
  // error.
  std::string ask(const std::string& field, const std::string& value) {
    const auto request = make("grpc.reflection.v1alpha.ServerReflectionRequest");
    const auto* descriptor = request->GetDescriptor()->FindFieldByName(field);
    request->GetReflection()->SetString(request.get(), descriptor, value);
    const auto response = make("grpc.reflection.v1alpha.ServerReflectionResponse");
    const grpc::Status status = call(*request, *response);
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) return "UNIMPLEMENTED";
    return status.ok() ? response->ShortDebugString() : status.error_message();
  }

 private:
  std::unique_ptr<google::protobuf::Message> make(const std::string& type) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(type);
    return std::unique_ptr<google::protobuf::Message>(factory_.GetPrototype(descriptor)->New());
  }

  grpc::Status call(const google::protobuf::Message& request, google::protobuf::Message& response) {
    const std::string bytes = request.SerializeAsString();
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer out(&slice, 1);
    grpc::ByteBuffer in;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto stream = stub_.PrepareCall(
        &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
    stream->StartCall(nullptr);
    next(queue);
    stream->Write(out, nullptr);
    next(queue);
    stream->Read(&in, nullptr);
    if (next(queue)) {
      grpc::Slice reply;
      EXPECT_TRUE(in.DumpToSingleSlice(&reply).ok());
      EXPECT_TRUE(response.ParseFromArray(reply.begin(), static_cast<int>(reply.size())));
    }
    stream->WritesDone(nullptr);
    next(queue);
    grpc::Status status;
    stream->Finish(&status, nullptr);
    next(queue);
    return status;
  }

  static bool next(grpc::CompletionQueue& queue) {
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return ok;
  }

  google::protobuf::DynamicMessageFactory factory_;
  grpc::GenericStub stub_;
};

TEST(GrpcServerTest, ListsAndDescribesItsServicesByReflection) {
  Harness harness;
  Reflection reflection(harness);
  EXPECT_THAT(reflection.ask("list_services", ""),
              AllOf(HasSubstr(kServiceName), HasSubstr("grpc.reflection.v1alpha")));
  for (const char* symbol : {kServiceName, "grpc.health.v1.Health"}) {
    EXPECT_THAT(reflection.ask("file_containing_symbol", symbol),
                HasSubstr("file_descriptor_response"));
  }
}

TEST(GrpcServerTest, HasNoReflectionWhenItIsOff) {
  GrpcOptions options = harness_grpc_options();
  options.reflection = false;
  Harness harness(options);
  Reflection reflection(harness);
  EXPECT_EQ(reflection.ask("list_services", ""), "UNIMPLEMENTED");
  harness.load_model();
  EXPECT_TRUE(generate_once(harness, counting_request(10, 2)).ok());
}

TEST(GrpcServerTest, SaysWhichAddressCannotBeBound) {
  Harness harness;
  telemetry::Registry registry;
  telemetry::TransportMetrics metrics(registry);
  GrpcOptions options;
  options.address = harness.address();
  const auto second = GrpcServer::start(options, harness.frontend, metrics, harness.clock);
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(message_of(second.status()),
              AllOf(HasSubstr("server.grpc_address"), HasSubstr(options.address)));
}

TEST(GrpcServerTest, CutsWhatIsStillOpenAfterTheGrace) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 30000));
  harness.executor.wait_until_held();
  harness.server->shutdown(std::chrono::milliseconds(10));
  EXPECT_FALSE(read_all(*reader).status.ok());
  harness.executor.open_gate();
  EXPECT_EQ(harness.drain(), 0) << "a cut call cancels its request";
}

}  // namespace
}  // namespace r1d::transport
