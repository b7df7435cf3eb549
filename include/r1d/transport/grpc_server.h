// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "r1d/admission/frontend.h"
#include "r1d/telemetry/metrics.h"

namespace r1d::transport {

// Whose answer is not complete: all, or those that have been in a step.
enum class Calls : uint8_t { kAll, kRunning };

struct GrpcOptions {
  std::string address = "127.0.0.1:50051";
  bool reflection = true;
  bool log_requests = true;  // one record a finished request
  int32_t max_request_bytes = 4 << 20;
  int32_t stream_buffer_tokens = 4096;
  int32_t max_concurrent_streams = 1024;
  int32_t max_connections = 10000;
  int32_t max_connections_per_address = 512;
  std::chrono::milliseconds max_request_time{3600000};
  // How long a client may take to read what is left once the engine is done with its request.
  std::chrono::milliseconds max_tail_time{60000};
};

// What may change while the server runs; counts for calls that begin later.
struct GrpcLimits {
  int32_t stream_buffer_tokens = 0;
  std::chrono::milliseconds max_request_time{};
};

// What GetModel and GetServerInfo answer, set once the model is loaded.
struct ServedModel {
  std::string name;
  std::string architecture;
  int64_t num_parameters = 0;
  int32_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int32_t max_model_len = 0;
  std::string weight_dtype;  // "fp8_e4m3", "bf16", "f32"
  std::string kv_cache_dtype;
  int64_t kv_bytes_per_token = 0;
  int32_t block_size = 0;
  int32_t num_blocks = 0;
  int32_t world_size = 1;
  bool has_tokenizer = false;
  bool has_mtp = false;
  bool has_chat_template = false;
  bool has_reasoning = false;
  std::string device;  // "cpu (AVX3, 2 threads)"
};

// The gRPC door: r1d.v1.InferenceService, grpc.health.v1, reflection; clients reach it through a
// guard that stops HTTP/2 floods. Callback API: gRPC's own threads; no handler blocks. Lifecycle:
// start() binds and answers UNAVAILABLE; model_loaded() -> SERVING; set_serving(false) on drain;
// shutdown().
class GrpcServer {
 public:
  // kUnavailable when the address cannot be bound. `frontend` and `metrics` outlive the server.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<GrpcServer>> start(
      const GrpcOptions& options,
      admission::Frontend& frontend,
      telemetry::TransportMetrics& metrics,
      const Clock& clock);
  virtual ~GrpcServer() = default;

  [[nodiscard]] virtual int32_t port() const = 0;
  virtual void model_loaded(const ServedModel& model) = 0;
  virtual void change_limits(const GrpcLimits& limits) = 0;  // thread-safe
  // grpc.health.v1: "" and r1d.v1.InferenceService; Watch subscribers are told.
  virtual void set_serving(bool serving) = 0;
  // Ends generating calls with `why`, whatever the engine does.
  virtual void end_calls(const absl::Status& why, Calls which) = 0;
  // Returns when every generating call has ended; those still open after `grace` are cut.
  virtual void shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace r1d::transport
