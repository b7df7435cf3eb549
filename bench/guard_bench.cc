// SPDX-License-Identifier: Apache-2.0
// What the HTTP/2 guard costs: one gRPC server with two doors, direct and through the guard, used
// in turns.
//
//   r1d_guard_bench [ROUNDS] [unary|small|large]
//
// Unary: round trips one after another, p50 and p99. Small: streams of messages the size of a
// token's. Large: streams of 64 KiB messages. Each figure is the median over the rounds, each ratio
// the median of the rounds' ratios. Processor time and context switches are of the whole process:
// client, guard and server.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "r1d/telemetry/metrics.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "transport/guard/guard.h"

namespace r1d::transport {
namespace {

using SteadyTime = std::chrono::steady_clock;

// Sends `min_tokens` messages, each with a text of `max_tokens` bytes.
class Writer final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit Writer(const v1::SamplingParams& shape) : left_(shape.min_tokens()) {
    message_.set_text(std::string(static_cast<size_t>(shape.max_tokens()), 't'));
    OnWriteDone(true);
  }
  void OnWriteDone(bool ok) override {
    if (ok && left_-- > 0) return StartWrite(&message_);
    Finish(grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  v1::GenerateResponse message_;
  int32_t left_;
};

class Service final : public v1::InferenceService::CallbackService {
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* /*request*/,
                                          v1::GetServerInfoResponse* /*response*/) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* /*context*/, const v1::GenerateRequest* request) override {
    return new Writer(request->sampling());  // until OnDone
  }
};

std::unique_ptr<v1::InferenceService::Stub> stub_at(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::InferenceService::NewStub(grpc::CreateCustomChannel(
      "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), arguments));
}

// What the process has used.
struct Usage {
  double cpu_us = 0;
  double switches = 0;  // of threads that went to sleep

  static Usage now() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return {static_cast<double>(std::clock()) / CLOCKS_PER_SEC * 1e6,
            static_cast<double>(usage.ru_nvcsw)};
  }
};

// Figures of one phase through one door.
using Figures = std::vector<double>;

// p50 and p99 in microseconds, and what a round trip uses.
Figures round_trips(v1::InferenceService::Stub& stub) {
  constexpr size_t kCount = 2000;
  std::vector<double> times;
  const Usage before = Usage::now();
  for (size_t i = 0; i < kCount; ++i) {
    grpc::ClientContext context;
    v1::GetServerInfoResponse response;
    const auto start = SteadyTime::now();
    if (!stub.GetServerInfo(&context, {}, &response).ok()) std::abort();
    times.push_back(std::chrono::duration<double, std::micro>(SteadyTime::now() - start).count());
  }
  const Usage after = Usage::now();
  std::sort(times.begin(), times.end());
  return {times[kCount / 2],
          times[kCount * 99 / 100],
          (after.cpu_us - before.cpu_us) / kCount,
          (after.switches - before.switches) / kCount};
}

void read_stream(v1::InferenceService::Stub& stub, int num_messages, int bytes) {
  grpc::ClientContext context;
  v1::GenerateRequest request;
  request.mutable_sampling()->set_min_tokens(num_messages);
  request.mutable_sampling()->set_max_tokens(bytes);
  const auto reader = stub.Generate(&context, request);
  v1::GenerateResponse message;
  int count = 0;
  while (reader->Read(&message)) ++count;
  if (!reader->Finish().ok() || count != num_messages) std::abort();
}

// Messages a second, and what each uses.
Figures stream_rate(v1::InferenceService::Stub& stub, int streams, int messages, int bytes) {
  const auto start = SteadyTime::now();
  const Usage before = Usage::now();
  std::vector<std::thread> readers;
  for (int i = 0; i < streams; ++i) {
    readers.emplace_back([&] { read_stream(stub, messages, bytes); });
  }
  for (std::thread& reader : readers) reader.join();
  const double total = static_cast<double>(streams) * messages;
  const Usage after = Usage::now();
  return {total / std::chrono::duration<double>(SteadyTime::now() - start).count(),
          (after.cpu_us - before.cpu_us) / total,
          (after.switches - before.switches) / total};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Phase {
  std::string_view name;
  std::vector<const char*> rows;
  std::function<Figures(v1::InferenceService::Stub&)> measure;
};

std::vector<Phase> phases() {
  return {{"unary", {"p50, us", "p99, us", "CPU us each", "switches each"}, round_trips},
          {"small",
           {"messages a second", "CPU us each", "switches each"},
           [](auto& stub) { return stream_rate(stub, 16, 2000, 12); }},
          {"large", {"64 KiB messages a second", "CPU us each", "switches each"}, [](auto& stub) {
             return stream_rate(stub, 2, 500, 64 << 10);
           }}};
}

using Stubs = std::array<std::unique_ptr<v1::InferenceService::Stub>, 2>;

// Both doors in every round, so that a neighbour on the machine meets both.
void compare(const Phase& phase, const Stubs& stubs, int num_rounds) {
  std::vector<std::array<std::vector<double>, 3>> rows(phase.rows.size());
  for (int round = -1; round < num_rounds; ++round) {
    const Figures direct = phase.measure(*stubs[0]);
    const Figures guarded = phase.measure(*stubs[1]);
    if (round < 0) continue;  // warms both up
    for (size_t row = 0; row < rows.size(); ++row) {
      rows[row][0].push_back(direct[row]);
      rows[row][1].push_back(guarded[row]);
      rows[row][2].push_back(guarded[row] / direct[row]);
    }
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    std::printf("%-6s %-26s %12.1f %12.1f %8.2f\n",
                std::string(phase.name).c_str(),
                phase.rows[row],
                median(rows[row][0]),
                median(rows[row][1]),
                median(rows[row][2]));
  }
}

int run(int num_rounds, std::string_view only) {
  telemetry::Registry registry;
  telemetry::TransportMetrics metrics(registry);
  GuardOptions options;
  options.address = "127.0.0.1:0";
  auto guard = Guard::listen(options, metrics);
  if (!guard.ok()) return 1;
  Service service;
  grpc::ServerBuilder builder;
  int direct_port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &direct_port);
  using Source = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  const auto acceptor = builder.experimental().AddExternalConnectionAcceptor(
      Source::FROM_FD, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const auto server = builder.BuildAndStart();
  (*guard)->start([&](int fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    acceptor->HandleNewConnection(&connection);
  });

  const Stubs stubs{stub_at(direct_port), stub_at((*guard)->port())};
  std::printf("%-33s %12s %12s %8s\n", "median of rounds", "direct", "guard", "ratio");
  for (const Phase& phase : phases()) {
    if (only.empty() || only == phase.name) compare(phase, stubs, num_rounds);
  }
  (*guard)->stop_accepting();
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

}  // namespace
}  // namespace r1d::transport

int main(int argc, char** argv) {
  return r1d::transport::run(argc > 1 ? std::atoi(argv[1]) : 7, argc > 2 ? argv[2] : "");
}
