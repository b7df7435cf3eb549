// SPDX-License-Identifier: Apache-2.0
// The one door behind all transports: validation, defaults, limits, ids. A transport turns its
// bytes into a GenerateRequest and sends events on; it judges nothing itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/base/clock.h"
#include "r1d/base/types.h"
#include "r1d/scheduler/request.h"
#include "r1d/scheduler/step_loop.h"

namespace r1d::admission {

// A request as a client states it; unset fields take defaults (ranges:
// proto/r1d/v1/inference.proto).
struct GenerateRequest {
  std::optional<std::string> prompt_text;
  std::optional<std::vector<TokenId>> prompt_token_ids;
  std::optional<std::string> model;  // must be the served name when given
  std::optional<int32_t> max_tokens;
  int32_t min_tokens = 0;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int32_t> top_k;
  double min_p = 0;
  double repetition_penalty = 1;
  double frequency_penalty = 0;
  double presence_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::optional<uint64_t> seed;
  std::optional<int32_t> logprobs;  // 0 .. 20
  int32_t n = 1;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  int32_t priority = 0;
  std::string cache_salt;
  std::string request_id;  // the client's own label, for logs
  std::optional<TimePoint> deadline;
};

// What the served model and the operator allow.
struct Limits {
  int32_t max_model_len = 0;
  int32_t max_tokens_default = 0;  // 0: up to max_model_len
  int32_t max_n = 8;
  int32_t max_logprobs = 20;
  int32_t max_logit_bias = 1024;
  int32_t max_stop_token_ids = 64;
  int32_t max_label_bytes = 128;  // request_id, cache_salt
  int32_t max_priority = 100;     // -max .. max
  int64_t vocab_size = 0;
  TokenId last_token_id = 0;
  std::vector<TokenId> eos_token_ids;
  double default_temperature = 1;
  double default_top_p = 1;
  int32_t default_top_k = 0;
  std::string model_name;
};

// Checks a request against the limits and fills in defaults; no id, arrival or sink yet, and the
// deadline is taken as it is (Frontend::submit has the clock). max_tokens is cut to what fits
// behind the prompt, min_tokens with it. kInvalidArgument (kNotFound for `model`) whose field_of()
// names the offending field. `random_seed` is used when the request has none.
[[nodiscard]] absl::StatusOr<scheduler::Request> validate(const GenerateRequest& request,
                                                          const Limits& limits,
                                                          uint64_t random_seed);

// Makes and reads the field name that an error carries as a payload ("" when none).
[[nodiscard]] absl::Status field_error(const std::string& field, const std::string& problem);
[[nodiscard]] std::string field_of(const absl::Status& status);

// How long a client should wait before it tries again; set on kResourceExhausted (queue full).
[[nodiscard]] absl::Status with_retry_after(absl::Status status, Duration delay);
[[nodiscard]] std::optional<Duration> retry_after_of(const absl::Status& status);

// Lifecycle: made before the model is loaded (submit answers kUnavailable "loading"), attach() when
// the loop runs, begin_drain() on SIGTERM (kUnavailable "draining"), fail() when the engine is
// lost. Threads: thread-safe.
class Frontend {
 public:
  enum class State : uint8_t { kLoading, kServing, kDraining, kFailed };

  explicit Frontend(const Clock& clock);
  ~Frontend();

  void attach(const Limits& limits, scheduler::StepLoop& loop);
  void begin_drain();
  void fail(const absl::Status& why);
  // Forgets the loop; submit answers kUnavailable from now on, cancel does nothing.
  void detach();

  [[nodiscard]] State state() const;
  // Null while loading.
  [[nodiscard]] std::shared_ptr<const Limits> limits() const;
  // What the loop carries as of its last step; none before attach() and after detach().
  [[nodiscard]] std::optional<scheduler::SchedulerStats> load() const;

  // Validates and submits; kDeadlineExceeded when the deadline has passed. On OK the sink sees one
  // on_finish per sequence. The id names the request in cancel().
  [[nodiscard]] absl::StatusOr<RequestId> submit(const GenerateRequest& request,
                                                 std::shared_ptr<scheduler::OutputSink> sink);
  void cancel(RequestId id, const absl::Status& why);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace r1d::admission
