// SPDX-License-Identifier: Apache-2.0
// What a call leaves in the log, and the trace that it belongs to.
#include <gmock/gmock.h>

#include "r1d/base/trace_context.h"

#include "tests/transport/grpc_harness.h"
#include "tests/transport/log_capture.h"

namespace r1d::transport {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParent[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

std::string initial_metadata(const grpc::ClientContext& context, const char* key) {
  const auto& metadata = context.GetServerInitialMetadata();
  const auto [first, last] = metadata.equal_range(key);
  EXPECT_EQ(std::distance(first, last), 1) << key;
  return first == last ? "" : std::string(first->second.data(), first->second.size());
}

base::TraceContext returned_trace(const grpc::ClientContext& context) {
  const auto trace = base::parse_traceparent(initial_metadata(context, "traceparent"));
  EXPECT_TRUE(trace.has_value());
  return trace.value_or(base::TraceContext{});
}

class GrpcLogTest : public ::testing::Test {
 protected:
  grpc::Status generate_once(Harness& harness,
                             const v1::GenerateRequest& request,
                             grpc::ClientContext& context) {
    v1::GenerateOnceResponse response;
    return harness.stub()->GenerateOnce(&context, request, &response);
  }

  // The one access record, once the server has ended its calls.
  json only_record(Harness& harness, const char* message) {
    harness.server->shutdown(std::chrono::minutes(4));
    const auto records = log_.records(message);
    EXPECT_EQ(records.size(), 1U) << log_.text();
    return records.empty() ? json() : records.front();
  }

  LogCapture log_{base::LogLevel::trace};
};

TEST_F(GrpcLogTest, FollowsARequestUnderItsClientsTrace) {
  Harness harness;
  harness.load_model();
  grpc::ClientContext context;
  context.AddMetadata("traceparent", kParent);
  context.AddMetadata("tracestate", "vendor=value");
  context.AddMetadata("x-request-id", "order 17");
  ASSERT_TRUE(generate_once(harness, counting_request(10, 3), context).ok());
  const base::TraceContext trace = returned_trace(context);
  EXPECT_EQ(trace.trace_id, kTrace);
  EXPECT_NE(trace.span_id, "b7ad6b7169203331");
  EXPECT_TRUE(trace.sampled);

  const json record = only_record(harness, "request finished");
  EXPECT_EQ(record["level"], "info");
  EXPECT_EQ(record["trace_id"], kTrace);
  const json& fields = record["context"];
  EXPECT_EQ(fields["method"], "GenerateOnce");
  EXPECT_EQ(fields["status"], "OK");
  EXPECT_EQ(fields["request_id"], initial_metadata(context, "x-request-id"));
  EXPECT_EQ(fields["client_request_id"], "order 17");
  EXPECT_EQ(fields["span_id"], trace.span_id);
  EXPECT_EQ(fields["input_length"], 2);
  EXPECT_EQ(fields["output_length"], 3);
  EXPECT_EQ(fields["finish_reason"], "length");
  EXPECT_EQ(fields["batch_size"], 1);
  EXPECT_GE(fields["queue_ms"], 0);
  EXPECT_GE(fields["ttft_ms"], fields["queue_ms"]);
  EXPECT_GE(fields["total_ms"], fields["ttft_ms"]);
  // The stages below speak of the same trace.
  for (const char* message : {"request is valid", "request enters the queue"}) {
    const auto records = log_.records(message);
    ASSERT_EQ(records.size(), 1U) << message;
    EXPECT_EQ(records.front()["trace_id"], kTrace) << message;
  }
  EXPECT_THAT(log_.text(), Not(HasSubstr("vendor=value")));
}

TEST_F(GrpcLogTest, BeginsATraceWhereTheClientBringsNoneToTheLetter) {
  Harness harness;
  harness.load_model();
  for (const auto& given : {std::vector<std::string>{},
                            {"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"},
                            {"00-00000000000000000000000000000000-b7ad6b7169203331-01"},
                            {"canary-traceparent"},
                            {kParent, kParent}}) {
    grpc::ClientContext context;
    for (const std::string& text : given) context.AddMetadata("traceparent", text);
    ASSERT_TRUE(generate_once(harness, counting_request(10, 1), context).ok());
    const base::TraceContext trace = returned_trace(context);
    EXPECT_NE(trace.trace_id, kTrace);
    EXPECT_FALSE(trace.sampled);
  }
  harness.server->shutdown(std::chrono::minutes(4));
  EXPECT_THAT(log_.text(), Not(HasSubstr("canary")));
}

TEST_F(GrpcLogTest, NamesTheFieldOfARefusedRequestAndNothingOfIt) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 1);
  request.set_request_id("canary\x01");
  request.set_cache_salt("canary-salt");
  grpc::ClientContext context;
  context.AddMetadata("traceparent", kParent);
  const grpc::Status status = generate_once(harness, request, context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), Not(HasSubstr("canary")));
  EXPECT_EQ(returned_trace(context).trace_id, kTrace);
  const json record = only_record(harness, "request refused");
  EXPECT_EQ(record["level"], "info");
  EXPECT_EQ(record["trace_id"], kTrace);
  EXPECT_EQ(record["context"]["status"], "INVALID_ARGUMENT");
  EXPECT_EQ(record["context"]["field"], "request_id");
  EXPECT_FALSE(record["context"].contains("request_id"));
  EXPECT_THAT(log_.text(), Not(HasSubstr("canary")));
}

TEST_F(GrpcLogTest, LeavesOutALabelThatIsNone) {
  Harness harness;
  harness.load_model();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", std::string(129, 'x'));
  ASSERT_TRUE(generate_once(harness, counting_request(10, 1), context).ok());
  EXPECT_FALSE(only_record(harness, "request finished")["context"].contains("client_request_id"));
}

TEST_F(GrpcLogTest, PrefersTheMessagesLabelToTheMetadatas) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 1);
  request.set_request_id("of the message");
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "of the metadata");
  ASSERT_TRUE(generate_once(harness, request, context).ok());
  EXPECT_EQ(only_record(harness, "request finished")["context"]["client_request_id"],
            "of the message");
}

TEST_F(GrpcLogTest, CallsAFaultOfOursAnErrorEvenWhereRequestsAreNotLogged) {
  GrpcOptions options = harness_grpc_options();
  options.log_requests = false;
  Harness harness(options);
  harness.load_model();
  grpc::ClientContext well;
  ASSERT_TRUE(generate_once(harness, counting_request(40, 1), well).ok());
  harness.executor.fail_at(12);
  grpc::ClientContext context;
  const grpc::Status status = generate_once(harness, counting_request(10, 5), context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  const json record = only_record(harness, "request finished");
  EXPECT_EQ(record["level"], "error");
  EXPECT_EQ(record["trace_id"], returned_trace(context).trace_id);
  EXPECT_EQ(record["context"]["status"], "INTERNAL");
  EXPECT_EQ(record["context"]["error"], "the logits are NaN");
  EXPECT_EQ(record["context"]["finish_reason"], "error");
  EXPECT_EQ(record["context"]["output_length"], 1);
}

TEST_F(GrpcLogTest, WarnsOfASequenceThatFailsInACallThatGoesWell) {
  Harness harness;
  harness.load_model();
  v1::GenerateRequest request = counting_request(10, 3);
  request.mutable_sampling()->set_n(2);
  harness.executor.fail_at(expected_tokens(10, 1, 2).back());  // the second one's second
  grpc::ClientContext context;
  ASSERT_TRUE(generate_once(harness, request, context).ok());
  const json record = only_record(harness, "request finished");
  EXPECT_EQ(record["level"], "info");
  EXPECT_EQ(record["context"]["finish_reason"], "mixed");
  const auto faults = log_.records("a sequence failed");
  ASSERT_EQ(faults.size(), 1U);
  EXPECT_EQ(faults.front()["level"], "warn");
  EXPECT_EQ(faults.front()["trace_id"], record["trace_id"]);
  EXPECT_EQ(faults.front()["context"]["index"], 1);
}

TEST_F(GrpcLogTest, SaysHowFarACancelledStreamCame) {
  Harness harness;
  harness.load_model();
  harness.executor.close_gate();
  grpc::ClientContext context;
  const auto reader = harness.stub()->Generate(&context, counting_request(10, 20000));
  harness.executor.wait_until_held();
  harness.executor.pass_one_step();
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  EXPECT_EQ(read_all(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  const json fields = only_record(harness, "request finished")["context"];
  EXPECT_EQ(fields["method"], "Generate");
  EXPECT_EQ(fields["status"], "CANCELLED");
  EXPECT_EQ(fields["finish_reason"], "cancelled");
  EXPECT_EQ(fields["output_length"], 1);
}

TEST_F(GrpcLogTest, TracesCallsThatNeedNoEngine) {
  Harness harness;
  grpc::ClientContext context;
  context.AddMetadata("traceparent", kParent);
  v1::GetServerInfoResponse response;
  ASSERT_TRUE(harness.stub()->GetServerInfo(&context, {}, &response).ok());
  EXPECT_EQ(returned_trace(context).trace_id, kTrace);
  const json record = only_record(harness, "request answered");
  EXPECT_EQ(record["level"], "debug");
  EXPECT_EQ(record["trace_id"], kTrace);
  EXPECT_EQ(record["context"]["method"], "GetServerInfo");
}

}  // namespace
}  // namespace r1d::transport
