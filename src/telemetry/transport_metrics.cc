// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <memory>
#include <string>

#include "r1d/telemetry/metrics.h"

#include "telemetry/buckets.h"
#include "telemetry/label_set.h"
#include "telemetry/minute_window.h"
#include "telemetry/registry.h"

namespace r1d::telemetry {
namespace {

constexpr Family kStarted{"r1d_rpc_started_total", "gRPC calls that came in, by method."};
// A rate by itself is for those who cannot ask Prometheus for one.
constexpr Family kRequestRate{
    "deepseek_request_rate",
    "gRPC calls that came in, a second, over the last minute, by the method called: as "
    "rate(r1d_rpc_started_total[1m])."};
constexpr Family kRpcs{"r1d_rpc_total", "Finished gRPC calls by method and status code."};
constexpr Family kRpcSeconds{
    "r1d_rpc_seconds",
    "From a gRPC call's arrival to its status; of a streaming call, the whole stream."};
constexpr Family kStreamsOpen{"r1d_streams_open", "Response streams that have not ended yet."};
constexpr Family kSlowConsumers{"r1d_slow_consumers_total",
                                "Streams ended because the client read slower than tokens came."};
constexpr Family kConnections{
    "r1d_connections", "Client connections of the gRPC port: in the HTTP/2 handshake, open."};
constexpr Family kConnectionsRefused{
    "r1d_connections_refused_total",
    "Client connections that were turned away or cut, by the limit passed."};

constexpr LabelSet<8> kMethods{{"Generate",
                                "GenerateOnce",
                                "Chat",
                                "ChatOnce",
                                "Tokenize",
                                "Detokenize",
                                "GetModel",
                                "GetServerInfo"}};

// grpc/statuscodes: the canonical names of 0 .. 16.
constexpr LabelSet<17> kCodes{{"OK",
                               "CANCELLED",
                               "UNKNOWN",
                               "INVALID_ARGUMENT",
                               "DEADLINE_EXCEEDED",
                               "NOT_FOUND",
                               "ALREADY_EXISTS",
                               "PERMISSION_DENIED",
                               "RESOURCE_EXHAUSTED",
                               "FAILED_PRECONDITION",
                               "ABORTED",
                               "OUT_OF_RANGE",
                               "UNIMPLEMENTED",
                               "INTERNAL",
                               "UNAVAILABLE",
                               "DATA_LOSS",
                               "UNAUTHENTICATED"}};

constexpr LabelSet<2> kConnectionStates{{"handshake", "open"}};
constexpr LabelSet<8> kRefusals{{"connection_limit",
                                 "address_limit",
                                 "not_http2",
                                 "timeout",
                                 "frame",
                                 "header_block",
                                 "reset_rate",
                                 "control_rate"}};

struct Method {
  prometheus::Counter* started = nullptr;
  std::shared_ptr<RateMeter> rate;  // shared with the registry, which asks it at each scrape
  std::array<prometheus::Counter*, decltype(kCodes)::kSize> by_code{};
  prometheus::Histogram* seconds = nullptr;
};

}  // namespace

class TransportMetrics::Impl {
 public:
  explicit Impl(Registry::Impl& registry)
      : streams_open(registry.gauge(kStreamsOpen)),
        slow_consumers(registry.counter(kSlowConsumers)) {
    for (size_t i = 0; i < methods.size(); ++i) add_method(registry, i);
    for (size_t i = 0; i < connections.size(); ++i) {
      connections[i] =
          &registry.gauge(kConnections, {{"state", std::string(kConnectionStates.value(i))}});
    }
    for (size_t i = 0; i < refused.size(); ++i) {
      refused[i] =
          &registry.counter(kConnectionsRefused, {{"reason", std::string(kRefusals.value(i))}});
    }
  }

  prometheus::Gauge& streams_open;
  prometheus::Counter& slow_consumers;
  std::array<Method, decltype(kMethods)::kSize> methods;
  std::array<prometheus::Gauge*, decltype(kConnectionStates)::kSize> connections{};
  std::array<prometheus::Counter*, decltype(kRefusals)::kSize> refused{};

 private:
  void add_method(Registry::Impl& registry, size_t index) {
    const std::string name(kMethods.value(index));
    Method& method = methods[index];
    method.started = &registry.counter(kStarted, {{"method", name}});
    method.rate = std::make_shared<RateMeter>(registry.clock());
    prometheus::Gauge& rate = registry.gauge(kRequestRate, {{"service", name}});
    registry.at_scrape([meter = method.rate, &rate] { rate.Set(meter->per_second()); });
    method.seconds = &registry.histogram(kRpcSeconds, request_buckets(), {{"method", name}});
    for (size_t code = 0; code < method.by_code.size(); ++code) {
      method.by_code[code] =
          &registry.counter(kRpcs, {{"method", name}, {"code", std::string(kCodes.value(code))}});
    }
  }
};

TransportMetrics::TransportMetrics(Registry& registry)
    : impl_(std::make_unique<Impl>(registry.impl())) {}
TransportMetrics::~TransportMetrics() = default;

void TransportMetrics::started(const char* method) {
  const Method& called = impl_->methods[kMethods.index(method)];
  called.started->Increment();
  called.rate->count();
}

void TransportMetrics::request(const char* method, const char* code, double seconds) {
  const Method& called = impl_->methods[kMethods.index(method)];
  called.by_code[kCodes.index(code)]->Increment();
  called.seconds->Observe(seconds);
}

void TransportMetrics::streams_open(int64_t delta) {
  impl_->streams_open.Increment(static_cast<double>(delta));
}

void TransportMetrics::slow_consumer() {
  impl_->slow_consumers.Increment();
}

void TransportMetrics::connections(const char* state, int64_t delta) {
  impl_->connections[kConnectionStates.index(state)]->Increment(static_cast<double>(delta));
}

void TransportMetrics::connection_refused(const char* reason) {
  impl_->refused[kRefusals.index(reason)]->Increment();
}

}  // namespace r1d::telemetry
