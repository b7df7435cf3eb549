// SPDX-License-Identifier: Apache-2.0
// What enters the scheduler and what comes back. Everything here was validated by admission.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>

#include "r1d/base/clock.h"
#include "r1d/base/types.h"
#include "r1d/engine/sampling.h"

namespace r1d::scheduler {

enum class FinishReason : uint8_t {
  kStop,       // a stop token was sampled
  kLength,     // max_tokens or max_model_len reached
  kCancelled,  // the client left, or the drain limit passed; see the status
  kDeadline,   // the request's deadline passed
  kError,      // a fault of this sequence, or the engine was lost; see the status
};
[[nodiscard]] const char* finish_reason_name(FinishReason reason);  // "stop", "length", ...

// One new token of one sequence.
struct TokenEvent {
  int32_t index = 0;  // which of the request's n sequences
  engine::SampledToken token;
  TimePoint time;  // when the step that made it ended
};

struct FinishEvent {
  int32_t index = 0;
  FinishReason reason = FinishReason::kStop;
  absl::Status status;                // OK for stop and length
  std::optional<TokenId> stop_token;  // the stop token that ended it (it is not among the output)
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int32_t num_output_tokens = 0;
  int32_t num_preemptions = 0;
  int32_t batch_size = 0;  // sequences in its last step; 0 when it never ran
  TimePoint arrival;
  TimePoint first_scheduled;  // == arrival when it never ran
  TimePoint first_token;      // == time when there was none
  TimePoint time;
};

// Receives a request's events on the step loop's thread, in order; must not block nor call the
// scheduler. Each sequence ends with exactly one on_finish, whatever happens.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  // A sequence enters its first step at `time`.
  virtual void on_start(int32_t /*index*/, TimePoint /*time*/) {}
  virtual void on_token(TokenEvent event) = 0;
  virtual void on_finish(const FinishEvent& event) = 0;
};

struct Request {
  RequestId id = 0;
  std::vector<TokenId> prompt;      // 1 .. max_model_len - 1 ids
  engine::SamplingParams sampling;  // sequence i of n uses seed + i
  int32_t n = 1;
  int32_t priority = 0;               // lower runs earlier
  std::optional<TimePoint> deadline;  // ends with kDeadline when passed
  std::string trace_id;               // in log records about the request
  std::string cache_salt;             // requests share cached prefixes only under an equal salt
  bool capture_logits = false;        // self-check: first token of each sequence carries its logits
  TimePoint arrival;
  // Shared: the transport's stream and the scheduler both hold it, whichever ends last.
  std::shared_ptr<OutputSink> sink;
};

}  // namespace r1d::scheduler
