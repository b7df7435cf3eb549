// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <absl/status/status.h>
#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>

#include "r1d/admission/frontend.h"
#include "r1d/base/clock.h"
#include "r1d/base/log.h"
#include "r1d/base/mutex.h"
#include "r1d/base/trace_context.h"
#include "r1d/telemetry/metrics.h"
#include "r1d/transport/grpc_server.h"
#include "r1d/v1/inference.pb.h"

#include "transport/grpc/call_labels.h"
#include "transport/grpc/call_log.h"
#include "transport/grpc/convert.h"
#include "transport/grpc/dispatcher.h"
#include "transport/grpc/open_calls.h"
#include "transport/grpc/output_buffer.h"

namespace r1d::transport {

// Limits that may change while the server runs; a call takes those of its beginning.
struct LiveLimits {
  explicit LiveLimits(const GrpcOptions& options)
      : stream_buffer_tokens(options.stream_buffer_tokens),
        max_request_time(options.max_request_time) {}

  std::atomic<int32_t> stream_buffer_tokens;
  std::atomic<std::chrono::milliseconds> max_request_time;
};

// What all calls of a server share; outlives them.
struct CallEnvironment {
  GrpcOptions options;
  admission::Frontend& frontend;
  telemetry::TransportMetrics& metrics;
  const Clock& clock;
  std::string id_prefix;  // tells the request ids of two runs of the daemon apart
  base::TraceIds trace_ids;
  std::shared_ptr<spdlog::logger> log;
  Dispatcher dispatcher;
  OpenCalls open_calls;
  LiveLimits limits{options};
};

// What tells one call from another of its kind.
struct CallTraits {
  const char* method = "";
  bool logprobs = false;
  int32_t num_sequences = 1;
  // With more in the buffer the request is given up. None: the call answers once, when the request
  // is complete.
  std::optional<int32_t> max_unread_tokens;
};

// One call that generates: a sink for the scheduler on one side, a gRPC reactor (the derived class)
// on the other.
//
// Lifecycle: start() submits the request, or notes why not. Events fill the buffer; advance() gives
// gRPC what it can take, and in the end one status: when the request is complete, or early
// (refused, client gone, slow reader). close(), from OnDone, is gRPC's last word. The scheduler and
// gRPC hold a share each; whichever lets go last destroys the call.
//
// Threads: on_token and on_finish on the step loop's, run() on the dispatcher's, the rest on
// gRPC's. gRPC may call back on the very thread that calls it, so mu_ is never held across a
// reactor's operation.
class GenerateCall : public scheduler::OutputSink,
                     public Dispatcher::Task,
                     public std::enable_shared_from_this<GenerateCall> {
 public:
  using MakeRequest = std::function<admission::GenerateRequest()>;

  // Submits what `make_request` makes; its deadline is set here.
  void start(const MakeRequest& make_request);

  // Ends the call with `why`, if it is one of `which` and not all of its answer is there to be
  // read.
  void end_unless_complete(const absl::Status& why, Calls which);

  void on_start(int32_t index, TimePoint time) final;
  void on_token(scheduler::TokenEvent event) final;
  void on_finish(const scheduler::FinishEvent& event) final;
  void run() final;

 protected:
  GenerateCall(const CallTraits& traits,
               CallEnvironment& environment,
               grpc::CallbackServerContext& context);

  // Gives gRPC the next thing it can take, if any. Thread-safe.
  virtual void advance() = 0;
  virtual void send_initial_metadata() = 0;

  // Ends the call with `why` unless its status is settled: cancels the request and advances.
  void end_early(const absl::Status& why);
  // From OnCancel: the client left, or its deadline passed.
  void client_left();
  // From OnDone: gRPC's share ends.
  void close();

  // The status of a call that ends early, unless it was taken before. Whoever takes it sends it, at
  // once, even behind a write that the client does not take.
  [[nodiscard]] std::optional<absl::Status> take_early_end() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The status of a request that is complete; the caller sends it.
  [[nodiscard]] absl::Status take_end() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Inside a catch block: the status of a call whose turn threw, if it is left for the caller to
  // send. `took_end`: that turn had taken the call's status.
  [[nodiscard]] std::optional<absl::Status> end_thrown(bool took_end);
  // Before start() has come so far, and once the status is taken, nothing is sent.
  [[nodiscard]] bool may_send() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return started_ && !settled_.has_value();
  }

  // Reads a piece, and has its sequence end where a stop text came. Calls of one request must not
  // overlap: a stream has one write at a time, a single answer is read under mu_.
  [[nodiscard]] admission::ReadOutput read(OutputPiece piece);
  [[nodiscard]] AnswerContext answer_context() const;

  CallEnvironment& environment_;
  grpc::CallbackServerContext& context_;  // valid until OnDone returns
  const CallTraits traits_;

  mutable base::Mutex mu_;
  OutputBuffer buffer_ ABSL_GUARDED_BY(mu_);
  std::string request_name_ ABSL_GUARDED_BY(mu_);  // what the client is told as request_id
  bool writing_ ABSL_GUARDED_BY(mu_) = false;      // its end calls advance()

 private:
  [[nodiscard]] TimePoint deadline() const;
  [[nodiscard]] absl::StatusOr<admission::Accepted> submit(const MakeRequest& make_request);
  [[nodiscard]] bool is_over() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return early_end_.has_value() || settled_.has_value();
  }
  void end_event_thrown() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void limit_tail() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void cancel_request(const absl::Status& why);
  void log_fault(const scheduler::FinishEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CallLabels labels_;
  const TimePoint arrival_;
  const TimePoint deadline_;
  RequestId id_ ABSL_GUARDED_BY(mu_) = 0;  // 0: not with the scheduler
  // Set before started_; then of whoever reads, see read().
  std::unique_ptr<admission::OutputReader> reader_;
  RequestId reader_id_ = 0;
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  bool queued_ ABSL_GUARDED_BY(mu_) = false;  // at the dispatcher
  bool ran_ ABSL_GUARDED_BY(mu_) = false;     // a sequence has been in a step
  std::optional<absl::Status> early_end_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> settled_ ABSL_GUARDED_BY(mu_);  // the status was taken
  CallLog call_log_ ABSL_GUARDED_BY(mu_);
  std::optional<grpc::Alarm> tail_alarm_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<GenerateCall> grpc_share_ ABSL_GUARDED_BY(mu_);
};

}  // namespace r1d::transport
