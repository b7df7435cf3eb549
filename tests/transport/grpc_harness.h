// SPDX-License-Identifier: Apache-2.0
// A gRPC server on a free loopback port over a real front end, step loop and scheduler; only the
// model is a fake that counts.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

#include "r1d/admission/frontend.h"
#include "r1d/scheduler/step_loop.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/grpc_server.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "tests/admission/fake_executor.h"

namespace r1d::transport {

// The machine's clock, and as much ahead as a test says. Thread-safe.
class ShiftedClock final : public Clock {
 public:
  [[nodiscard]] TimePoint now() const override {
    return std::chrono::steady_clock::now() + Duration(ahead_.load());
  }
  void advance(Duration by) { ahead_ += by.count(); }

 private:
  std::atomic<Duration::rep> ahead_{0};
};

inline admission::Limits harness_limits(const scheduler::SchedulerOptions& options) {
  admission::Limits limits;
  limits.max_model_len = options.max_model_len;
  limits.vocab_size = 100;
  limits.last_token_id = 95;
  limits.eos_token_ids = {0};
  limits.model_name = "counting";
  return limits;
}

inline scheduler::SchedulerOptions harness_scheduler_options() {
  scheduler::SchedulerOptions options;
  options.max_batch_size = 64;
  options.max_num_batched_tokens = 4096;
  options.max_model_len = 32768;
  options.block_size = 64;
  options.num_blocks = 1024;
  return options;
}

inline GrpcOptions harness_grpc_options() {
  GrpcOptions options;
  options.address = "127.0.0.1:0";
  return options;
}

class Harness {
 public:
  explicit Harness(GrpcOptions grpc_options = harness_grpc_options(),
                   scheduler::SchedulerOptions options = harness_scheduler_options())
      : options_(options),
        loop_(options, executor, engine_metrics_, clock, [this](const absl::Status& why) {
          frontend.fail(why);
        }) {
    auto started = GrpcServer::start(grpc_options, frontend, transport_metrics_, clock);
    EXPECT_TRUE(started.ok()) << started.status();
    server = std::move(started).value();
  }
  ~Harness() {
    executor.open_gate();
    server->shutdown(std::chrono::milliseconds(0));
    frontend.detach();
    loop_.stop();
  }

  void load_model() {
    loop_.start();
    frontend.attach(harness_limits(options_), nullptr, loop_);
    server->model_loaded(model());
  }

  // Waits until the engine has nothing left to do; the number of sequences it had to cancel.
  int64_t drain() {
    frontend.begin_drain();
    return loop_.drain(std::chrono::minutes(4)).value();
  }

  [[nodiscard]] scheduler::SchedulerStats stats() const { return loop_.stats(); }

  [[nodiscard]] std::string address() const {
    return "127.0.0.1:" + std::to_string(server->port());
  }
  // A connection of its own.
  [[nodiscard]] std::shared_ptr<grpc::Channel> channel(
      grpc::ChannelArguments arguments = {}) const {
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address(), grpc::InsecureChannelCredentials(), arguments);
  }
  [[nodiscard]] std::unique_ptr<v1::InferenceService::Stub> stub() const {
    return v1::InferenceService::NewStub(channel());
  }
  // The value of a line of /metrics that begins with `name`, or "".
  [[nodiscard]] std::string metric(const std::string& name) const {
    const std::string text = registry_.render();
    const size_t at = text.find("\n" + name + " ");
    if (at == std::string::npos) return "";
    const size_t value = at + name.size() + 2;
    return text.substr(value, text.find('\n', value) - value);
  }

  static ServedModel model() {
    ServedModel model;
    model.name = "counting";
    model.architecture = "CountingForCausalLM";
    model.num_parameters = 7;
    model.vocab_size = 100;
    model.max_model_len = 32768;
    model.block_size = 64;
    model.num_blocks = 1024;
    model.device = "fake";
    return model;
  }

  ShiftedClock clock;
  testing::FakeExecutor executor;

 private:
  scheduler::SchedulerOptions options_;
  telemetry::Registry registry_;
  telemetry::EngineMetrics engine_metrics_{registry_};
  telemetry::TransportMetrics transport_metrics_{registry_};

 public:
  admission::Frontend frontend{clock};

 private:
  scheduler::StepLoop loop_;

 public:
  std::unique_ptr<GrpcServer> server;
};

// A prompt that ends with `last`, and seed 0: the answer is last + 1, last + 2, ...
inline v1::GenerateRequest counting_request(int32_t last, int32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_prompt()->mutable_token_ids()->add_ids(50);
  request.mutable_prompt()->mutable_token_ids()->add_ids(last);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_seed(0);
  return request;
}

// What the fake engine makes of it.
inline std::vector<int32_t> expected_tokens(int32_t last, uint64_t seed, int32_t count) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) {
    last = testing::FakeExecutor::next_token(last, seed);
    tokens.push_back(last);
  }
  return tokens;
}

// One sequence put together from a stream.
struct Collected {
  std::vector<int32_t> tokens;
  std::vector<v1::TokenLogprobs> logprobs;
  std::optional<v1::Finish> finish;
};

struct StreamResult {
  std::string request_id;
  std::vector<Collected> sequences;
  grpc::Status status;
};

inline void add_message(const v1::GenerateResponse& message, StreamResult& result) {
  if (!message.request_id().empty()) {
    EXPECT_EQ(result.request_id, "") << "the id comes once";
    result.request_id = message.request_id();
  }
  const auto index = static_cast<size_t>(message.index());
  if (result.sequences.size() <= index) result.sequences.resize(index + 1);
  Collected& sequence = result.sequences[index];
  EXPECT_FALSE(sequence.finish.has_value()) << "nothing comes after the finish";
  EXPECT_TRUE(message.token_ids_size() > 0 || message.has_finish()) << "no empty messages";
  sequence.tokens.insert(
      sequence.tokens.end(), message.token_ids().begin(), message.token_ids().end());
  sequence.logprobs.insert(
      sequence.logprobs.end(), message.logprobs().begin(), message.logprobs().end());
  if (message.has_finish()) sequence.finish = message.finish();
}

inline StreamResult read_all(grpc::ClientReader<v1::GenerateResponse>& reader) {
  StreamResult result;
  v1::GenerateResponse message;
  while (reader.Read(&message)) add_message(message, result);
  result.status = reader.Finish();
  return result;
}

inline StreamResult generate(v1::InferenceService::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  return read_all(*reader);
}

// The detail of type Detail that a status carries.
template <typename Detail>
std::optional<Detail> detail_of(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  EXPECT_EQ(details.code(), status.error_code());
  for (const auto& any : details.details()) {
    Detail detail;
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

}  // namespace r1d::transport
