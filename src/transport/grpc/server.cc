// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include "grpc/health/v1/health.pb.h"

#include "r1d/base/check.h"
#include "r1d/base/exceptions.h"
#include "r1d/base/fault.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/status.h"
#include "r1d/base/version.h"
#include "r1d/transport/grpc_server.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "transport/grpc/call.h"
#include "transport/grpc/call_labels.h"
#include "transport/grpc/call_log.h"
#include "transport/grpc/convert.h"
#include "transport/grpc/generate.h"
#include "transport/grpc/library_logs.h"
#include "transport/grpc/status.h"
#include "transport/guard/guard.h"

namespace r1d::transport {
namespace {

constexpr char kServiceName[] = "r1d.v1.InferenceService";

// All requests in all connections together may hold so much; gRPC refuses beyond it.
constexpr size_t kMemoryQuotaBytes = size_t{512} << 20;

// How long clients may take to read the last bytes once the server has closed.
constexpr std::chrono::seconds kFlushTime{2};

using ModelPtr = std::shared_ptr<const ServedModel>;

// Answers a call that needs no engine. `work` fills in the response.
grpc::ServerUnaryReactor* answer(const char* method,
                                 CallEnvironment& environment,
                                 grpc::CallbackServerContext& context,
                                 const std::function<absl::Status()>& work) {
  environment.metrics.started(method);
  const absl::Status status = base::without_exceptions([&]() -> absl::Status {
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kRpc));
    return work();
  });
  environment.metrics.request(method, code_name(status.code()), 0);
  const base::TraceContext trace = environment.trace_ids.next(labels_of(context).trace);
  context.AddInitialMetadata("traceparent", base::to_traceparent(trace));
  log_answer(*environment.log, method, trace, status);
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(to_grpc_status(status, context));
  return reactor;
}

class Service final : public v1::InferenceService::CallbackService {
 public:
  explicit Service(CallEnvironment& environment)
      : environment_(environment), start_(environment.clock.now()) {}

  void set_model(const ServedModel& model) {
    const base::MutexLock lock(mu_);
    model_ = std::make_shared<const ServedModel>(model);
  }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return begin<StreamCall<v1::GenerateResponse>>(
        streamed("Generate", *request), *context, *request);
  }

  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const v1::GenerateRequest* request,
                                         v1::GenerateOnceResponse* response) override {
    return begin<OnceCall<v1::GenerateOnceResponse>>(
        whole("GenerateOnce", *request), *context, *request, *response);
  }

  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* context,
                                                   const v1::ChatRequest* request) override {
    return begin<StreamCall<v1::ChatResponse>>(streamed("Chat", *request), *context, *request);
  }

  grpc::ServerUnaryReactor* ChatOnce(grpc::CallbackServerContext* context,
                                     const v1::ChatRequest* request,
                                     v1::ChatOnceResponse* response) override {
    return begin<OnceCall<v1::ChatOnceResponse>>(
        whole("ChatOnce", *request), *context, *request, *response);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return answer(
        "Tokenize", environment_, *context, [&] { return tokenize(*request, *response); });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return answer(
        "Detokenize", environment_, *context, [&] { return detokenize(*request, *response); });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override {
    return answer(
        "GetModel", environment_, *context, [&] { return describe_model(*request, *response); });
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* /*request*/,
                                          v1::GetServerInfoResponse* response) override {
    return answer("GetServerInfo", environment_, *context, [&] {
      describe_server(*response);
      return absl::OkStatus();
    });
  }

 private:
  template <typename Request>
  static CallTraits whole(const char* method, const Request& request) {
    return {.method = method,
            .logprobs = request.sampling().has_logprobs(),
            .num_sequences = request.sampling().has_n() ? request.sampling().n() : 1,
            .max_unread_tokens = std::nullopt};
  }
  template <typename Request>
  CallTraits streamed(const char* method, const Request& request) const {
    CallTraits traits = whole(method, request);
    traits.max_unread_tokens = environment_.limits.stream_buffer_tokens.load();
    return traits;
  }

  template <typename Call, typename Request, typename... Response>
  Call* begin(const CallTraits& traits,
              grpc::CallbackServerContext& context,
              const Request& request,
              Response&... response) {
    const auto call = std::make_shared<Call>(traits, environment_, context, response...);
    call->start([&] { return request_from_proto(request); });
    return call.get();  // it holds a share of itself until OnDone
  }

  absl::Status tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse& response) const {
    admission::GenerateRequest input;
    if (request.has_text()) input.prompt_text = request.text();
    if (request.has_chat()) input = request_from_proto(request.chat());
    input.stop.clear();
    R1D_ASSIGN_OR_RETURN(const admission::TextModel::Prompt prompt,
                         environment_.frontend.tokenize(input, request.plain()));
    const auto text = environment_.frontend.text();
    response.mutable_token_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
    for (const TokenId id : prompt.ids) {
      response.add_token_bytes(std::string(text->tokenizer().bytes_of(id)));
    }
    response.set_prompt(prompt.text);
    return absl::OkStatus();
  }

  absl::Status detokenize(const v1::DetokenizeRequest& request,
                          v1::DetokenizeResponse& response) const {
    const std::vector<TokenId> ids(request.token_ids().begin(), request.token_ids().end());
    R1D_ASSIGN_OR_RETURN(*response.mutable_text(),
                         environment_.frontend.detokenize(ids, request.skip_special()));
    return absl::OkStatus();
  }

  ModelPtr model() const {
    const base::MutexLock lock(mu_);
    return model_;
  }

  absl::Status describe_model(const v1::GetModelRequest& request,
                              v1::GetModelResponse& response) const {
    const ModelPtr served = model();
    const auto limits = environment_.frontend.limits();
    if (served == nullptr || limits == nullptr) return unavailable("the model is still loading");
    if (!request.model().empty() && request.model() != served->name) {
      return not_found("model: not served here; this server has \"{}\"", served->name);
    }
    fill_model(*served, *limits, response);
    return absl::OkStatus();
  }

  void describe_server(v1::GetServerInfoResponse& response) const {
    response.set_version(base::version());
    response.set_state(state_to_proto(environment_.frontend.state()));
    response.set_uptime_seconds(seconds_between(start_, environment_.clock.now()));
    if (const ModelPtr served = model(); served != nullptr) {
      response.set_device(served->device);
      response.set_world_size(served->world_size);
      response.set_block_size(served->block_size);
      response.set_num_blocks(served->num_blocks);
    }
    describe_limits(*response.mutable_limits());
    if (const auto load = environment_.frontend.load(); load.has_value()) {
      response.mutable_load()->set_num_waiting(load->num_waiting);
      response.mutable_load()->set_num_running(load->num_running);
      response.mutable_load()->set_num_blocks_used(load->num_blocks_used);
      response.mutable_load()->set_num_blocks_cached(load->num_blocks_cached);
    }
  }

  void describe_limits(v1::Limits& message) const {
    const GrpcOptions& options = environment_.options;
    message.set_max_request_bytes(options.max_request_bytes);
    message.set_stream_buffer_tokens(environment_.limits.stream_buffer_tokens.load());
    message.set_max_concurrent_streams(options.max_concurrent_streams);
    message.set_max_request_seconds(
        std::chrono::duration<double>(environment_.limits.max_request_time.load()).count());
    const auto limits = environment_.frontend.limits();
    if (limits == nullptr) return;
    message.set_max_model_len(limits->max_model_len);
    message.set_max_tokens_default(limits->max_tokens_default);
    message.set_max_n(limits->max_n);
    message.set_max_logprobs(limits->max_logprobs);
    message.set_max_logit_bias(limits->max_logit_bias);
    message.set_max_stop_token_ids(limits->max_stop_token_ids);
    message.set_max_label_bytes(limits->max_label_bytes);
    message.set_max_priority(limits->max_priority);
    message.set_max_stop_strings(chat::StopMatcher::kMaxStops);
    message.set_max_stop_string_bytes(chat::StopMatcher::kMaxStopBytes);
    message.set_max_messages(limits->max_messages);
    message.set_max_tools(limits->max_tools);
  }

  CallEnvironment& environment_;
  const TimePoint start_;
  mutable base::Mutex mu_;
  ModelPtr model_ ABSL_GUARDED_BY(mu_);
};

// Linking gRPC's reflection library puts it into every server of the process; this says so per
// server.
class ReflectionOption final : public grpc::ServerBuilderOption {
 public:
  explicit ReflectionOption(bool enabled) : enabled_(enabled) {}
  void UpdateArguments(grpc::ChannelArguments* /*arguments*/) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    auto reflection = std::make_unique<grpc::reflection::ProtoServerReflectionPlugin>();
    std::erase_if(*plugins,
                  [&](const auto& plugin) { return plugin->name() == reflection->name(); });
    if (enabled_) plugins->push_back(std::move(reflection));
  }

 private:
  const bool enabled_;
};

int to_ms(std::chrono::milliseconds duration) {
  return static_cast<int>(
      std::clamp<int64_t>(duration.count(), 0, std::numeric_limits<int>::max()));
}

void set_limits(const GrpcOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(options.max_request_bytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  grpc::ResourceQuota quota("r1d");
  quota.Resize(kMemoryQuotaBytes);
  builder.SetResourceQuota(quota);
  // A message is inflated before its size is looked at, so compressed ones are refused unread.
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
}

// Pings find dead peers; a connection's age is bounded so that clients come back through their load
// balancer. A request may outlive the age, and is bounded by its own limit, which may change: the
// grace is longer than any.
void set_connection_life(grpc::ServerBuilder& builder) {
  using std::chrono::hours;
  using std::chrono::minutes;
  using std::chrono::seconds;
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, to_ms(seconds(30)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, to_ms(seconds(10)));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             to_ms(seconds(10)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, to_ms(minutes(15)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, to_ms(minutes(30)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                             to_ms(hours(7 * 24) + minutes(1)));
}

std::string random_prefix() {
  std::random_device device;
  return fmt::format("{:08x}", device());
}

uint64_t random_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

class GrpcServerImpl final : public GrpcServer {
 public:
  GrpcServerImpl(const GrpcOptions& options,
                 admission::Frontend& frontend,
                 telemetry::TransportMetrics& metrics,
                 const Clock& clock)
      : environment_{options,
                     frontend,
                     metrics,
                     clock,
                     random_prefix(),
                     base::TraceIds(random_seed()),
                     log_,
                     {},
                     {}},
        service_(environment_) {}

  ~GrpcServerImpl() override { shutdown(std::chrono::milliseconds(0)); }

  absl::Status listen() {
    const GrpcOptions& options = environment_.options;
    R1D_ASSIGN_OR_RETURN(guard_, Guard::listen(guard_options(options), environment_.metrics));
    grpc::ServerBuilder builder;
    set_limits(options, builder);
    set_connection_life(builder);
    using Source = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        Source::FROM_FD, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    builder.SetOption(std::make_unique<ReflectionOption>(options.reflection));
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return unavailable("gRPC: the server cannot be built");
    // gRPC says SERVING for "" from its start; nobody hears it, the guard lets nobody in yet.
    set_serving(false);
    guard_->start([this](int fd) { hand_over(fd); });
    log_->info("gRPC on port {}{}", port(), options.reflection ? ", with reflection" : "");
    return absl::OkStatus();
  }

  int32_t port() const override { return guard_->port(); }

  void model_loaded(const ServedModel& model) override {
    service_.set_model(model);
    set_serving(true);
  }

  void change_limits(const GrpcLimits& limits) override {
    environment_.limits.stream_buffer_tokens = limits.stream_buffer_tokens;
    environment_.limits.max_request_time = limits.max_request_time;
  }

  void set_serving(bool serving) override {
    if (server_ == nullptr) return;
    grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
    health->SetServingStatus("", serving);
    health->SetServingStatus(kServiceName, serving);
  }

  void end_calls(const absl::Status& why, Calls which) override {
    for (const std::shared_ptr<GenerateCall>& call : environment_.open_calls.all()) {
      call->end_unless_complete(why, which);
    }
  }

  void shutdown(std::chrono::milliseconds grace) override {
    if (server_ == nullptr) return;
    server_->GetHealthCheckService()->Shutdown();
    // Not Shutdown(grace): that would also wait for every health Watch, which never ends by itself.
    environment_.open_calls.wait_for_none(std::chrono::steady_clock::now() + grace);
    guard_->stop_accepting();
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();  // returns after the last OnDone: no call uses the environment any more
    guard_->finish(kFlushTime);
  }

 private:
  static GuardOptions guard_options(const GrpcOptions& options) {
    GuardOptions guard;
    guard.address = options.address;
    guard.connections = {.total = options.max_connections,
                         .per_address = options.max_connections_per_address};
    return guard;
  }

  void hand_over(int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor_->HandleNewConnection(&connection);
  }

  const std::shared_ptr<spdlog::logger> log_ = base::make_logger("transport");
  CallEnvironment environment_;
  Service service_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Guard> guard_;
};

// The health service is enabled for the process, before its first server is built.
void enable_health() {
  static const bool enabled = [] {
    grpc::EnableDefaultHealthCheckService(true);
    // Naming the descriptor links it in, so that reflection can describe the service.
    return grpc::health::v1::HealthCheckRequest::descriptor() != nullptr;
  }();
  R1D_CHECK(enabled);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::start(const GrpcOptions& options,
                                                              admission::Frontend& frontend,
                                                              telemetry::TransportMetrics& metrics,
                                                              const Clock& clock) {
  route_library_logs();
  enable_health();
  auto server = std::make_unique<GrpcServerImpl>(options, frontend, metrics, clock);
  R1D_RETURN_IF_ERROR(server->listen());
  return server;
}

}  // namespace r1d::transport
