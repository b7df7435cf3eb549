// SPDX-License-Identifier: Apache-2.0
// What the HTTP/2 guard costs: one gRPC server with two doors, direct and through the guard, used
// in turns.
//
//   r1d_guard_bench [ROUNDS]
//
// Unary: round trips one after another, p50 and p99. Small: streams of messages the size of a
// token's. Large: streams of 64 KiB messages. Each figure is the median over the rounds.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <string>
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

double process_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

// Microseconds of each round trip.
std::vector<double> round_trips(v1::InferenceService::Stub& stub, int count) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    grpc::ClientContext context;
    v1::GetServerInfoResponse response;
    const auto start = SteadyTime::now();
    if (!stub.GetServerInfo(&context, {}, &response).ok()) std::abort();
    times.push_back(std::chrono::duration<double, std::micro>(SteadyTime::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return times;
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

struct StreamRate {
  double per_second = 0;
  double cpu_us = 0;  // of the whole process, client and server, a message
};

StreamRate stream_rate(v1::InferenceService::Stub& stub, int streams, int messages, int bytes) {
  const auto start = SteadyTime::now();
  const double cpu = process_seconds();
  std::vector<std::thread> readers;
  for (int i = 0; i < streams; ++i) {
    readers.emplace_back([&] { read_stream(stub, messages, bytes); });
  }
  for (std::thread& reader : readers) reader.join();
  const double total = static_cast<double>(streams) * messages;
  return {total / std::chrono::duration<double>(SteadyTime::now() - start).count(),
          (process_seconds() - cpu) / total * 1e6};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr std::array kRows{"unary p50, us",
                           "unary p99, us",
                           "small messages a second",
                           "small messages, CPU us each",
                           "64 KiB messages a second",
                           "64 KiB messages, CPU us each"};

std::array<double, kRows.size()> measure(v1::InferenceService::Stub& stub) {
  const std::vector<double> trips = round_trips(stub, 2000);
  const StreamRate small = stream_rate(stub, 16, 2000, 12);
  const StreamRate large = stream_rate(stub, 2, 500, 64 << 10);
  return {trips[trips.size() / 2],
          trips[trips.size() * 99 / 100],
          small.per_second,
          small.cpu_us,
          large.per_second,
          large.cpu_us};
}

int run(int num_rounds) {
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

  const std::array stubs{stub_at(direct_port), stub_at((*guard)->port())};
  std::array<std::array<std::vector<double>, kRows.size()>, 2> results;
  for (int round = -1; round < num_rounds; ++round) {
    for (size_t door = 0; door < stubs.size(); ++door) {
      const auto figures = measure(*stubs[door]);
      if (round < 0) continue;  // warms both up
      for (size_t row = 0; row < figures.size(); ++row) {
        results[door][row].push_back(figures[row]);
      }
    }
  }
  std::printf("%-30s %12s %12s %8s\n", "median of rounds", "direct", "guard", "ratio");
  for (size_t row = 0; row < kRows.size(); ++row) {
    const double direct = median(results[0][row]);
    const double guarded = median(results[1][row]);
    std::printf("%-30s %12.1f %12.1f %8.2f\n", kRows[row], direct, guarded, guarded / direct);
  }
  (*guard)->stop_accepting();
  server->Shutdown(std::chrono::system_clock::now());
  return 0;
}

}  // namespace
}  // namespace r1d::transport

int main(int argc, char** argv) {
  return r1d::transport::run(argc > 1 ? std::atoi(argv[1]) : 7);
}
