// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>

#include <grpcpp/completion_queue.h>

#include "r1d/base/clock.h"
#include "r1d/v1/inference.grpc.pb.h"

#include "cli/bench/record.h"
#include "cli/bench/workload.h"

namespace r1d::cli::bench {

// One request on its way. Lifecycle: start(), then proceed() for each event of the queue whose tag
// it is, until that returns true. Threads: start() by whoever made it, proceed() on the queue's
// thread; cancel() from any in between.
class Call {
 public:
  virtual ~Call() = default;

  // `zero`: what the record's times count from. Sets record.sent.
  virtual void start(v1::InferenceService::Stub& stub,
                     grpc::CompletionQueue& queue,
                     double timeout_seconds,
                     TimePoint zero) = 0;
  virtual void cancel() = 0;
  // True when the call is over and the record complete.
  [[nodiscard]] virtual bool proceed(bool ok) = 0;

  Record record;
  // Tokens that the last proceed() received.
  [[nodiscard]] int32_t num_new_tokens() const { return num_new_tokens_; }

 protected:
  int32_t num_new_tokens_ = 0;
};

[[nodiscard]] std::unique_ptr<Call> make_call(Ask ask, bool unary);

}  // namespace r1d::cli::bench
