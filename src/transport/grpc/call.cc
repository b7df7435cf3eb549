// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <grpc/grpc.h>

#include "r1d/base/exceptions.h"
#include "r1d/base/fault.h"
#include "r1d/base/status.h"

#include "transport/grpc/convert.h"
#include "transport/grpc/status.h"

namespace r1d::transport {
namespace {

// gRPC cancels a call whose deadline passed by its own clock; the conversion to ours may be off by
// so much.
constexpr auto kClockTolerance = std::chrono::milliseconds(10);

// Must be kept as long as it is used: gRPC's own reference ends with OnDone.
std::shared_ptr<grpc_call> share(grpc_call* call) {
  grpc_call_ref(call);
  return {call, grpc_call_unref};
}

}  // namespace

GenerateCall::GenerateCall(const CallTraits& traits,
                           CallEnvironment& environment,
                           grpc::CallbackServerContext& context)
    : environment_(environment),
      context_(context),
      traits_(traits),
      buffer_(traits.num_sequences),
      labels_(labels_of(context)),
      arrival_(environment.clock.now()),
      deadline_(deadline()),
      call_log_(traits.method, environment.trace_ids.next(labels_.trace), arrival_) {}

// The client's deadline, but no later than the server's own limit.
TimePoint GenerateCall::deadline() const {
  const auto limit = environment_.limits.max_request_time.load();
  if (context_.deadline() == std::chrono::system_clock::time_point::max()) return arrival_ + limit;
  const auto left = context_.deadline() - std::chrono::system_clock::now();
  return arrival_ + std::min<Duration>(left, limit);
}

absl::StatusOr<admission::Accepted> GenerateCall::submit(const MakeRequest& make_request) {
  try {
    R1D_RETURN_IF_ERROR(base::fault_status(base::FaultPoint::kRpc));
    admission::GenerateRequest request = make_request();
    request.deadline = deadline_;
    if (request.request_id.empty()) request.request_id = labels_.request_id;
    {
      const base::MutexLock lock(mu_);
      request.trace_id = call_log_.trace().trace_id;
      call_log_.label(request.request_id);
    }
    return environment_.frontend.submit(request, shared_from_this());
  } catch (...) {
    return base::caught_status();
  }
}

void GenerateCall::start(const MakeRequest& make_request) {
  environment_.open_calls.add(shared_from_this());
  environment_.metrics.started(traits_.method);
  if (traits_.max_unread_tokens.has_value()) environment_.metrics.streams_open(+1);
  {
    const base::MutexLock lock(mu_);
    context_.AddInitialMetadata("traceparent", base::to_traceparent(call_log_.trace()));
  }
  auto accepted = submit(make_request);
  std::string name;
  if (accepted.ok()) {
    name = fmt::format("{}-{}", environment_.id_prefix, accepted->id);
    context_.AddInitialMetadata("x-request-id", name);
    send_initial_metadata();
  }
  {
    const base::MutexLock lock(mu_);
    if (accepted.ok()) {
      id_ = reader_id_ = accepted->id;
      reader_ = std::move(accepted->reader);
      request_name_ = name;
      call_log_.accepted(name, accepted->num_prompt_tokens);
    } else {
      early_end_ = accepted.status();
    }
    grpc_share_ = shared_from_this();
    started_ = true;
  }
  run();
}

admission::ReadOutput GenerateCall::read(OutputPiece piece) {
  const int32_t index = piece.index;
  admission::ReadOutput output =
      reader_->read(index, std::move(piece.tokens), std::move(piece.finish));
  if (output.stopped && !output.finish) environment_.frontend.finish(reader_id_, index);
  return output;
}

AnswerContext GenerateCall::answer_context() const {
  return {.logprobs = traits_.logprobs,
          .call_id = fmt::format("call-{}-{}", environment_.id_prefix, reader_id_)};
}

void GenerateCall::on_start(int32_t /*index*/, TimePoint time) {
  const base::MutexLock lock(mu_);
  ran_ = true;
  call_log_.on_start(time);
}

void GenerateCall::on_token(scheduler::TokenEvent event) {
  const base::MutexLock lock(mu_);
  call_log_.on_token(event.time);
  if (is_over()) return;
  try {
    base::hit_fault(base::FaultPoint::kEvent);
    buffer_.add(std::move(event));
  } catch (...) {
    return end_event_thrown();
  }
  const auto& limit = traits_.max_unread_tokens;
  if (limit.has_value() && buffer_.num_unread() > *limit) {
    early_end_ = resource_exhausted("slow consumer: more than {} tokens were left unread", *limit);
    buffer_.clear();
    environment_.metrics.slow_consumer();
  }
  if (limit.has_value() || (started_ && reader_ != nullptr && reader_->may_stop())) wake();
}

void GenerateCall::on_finish(const scheduler::FinishEvent& event) {
  const base::MutexLock lock(mu_);
  call_log_.on_finish(event);
  if (is_over()) return;
  if (absl::IsInternal(event.status)) log_fault(event);
  try {
    buffer_.add(event);
  } catch (...) {
    return end_event_thrown();
  }
  if (buffer_.complete()) limit_tail();
  if (buffer_.complete() || traits_.max_unread_tokens.has_value()) wake();
}

// Inside a catch block. What goes wrong with one call's events must not reach the step loop.
void GenerateCall::end_event_thrown() {
  early_end_ = base::caught_status();
  buffer_.clear();
  wake();
}

// One sequence of several may fail while the call goes well.
void GenerateCall::log_fault(const scheduler::FinishEvent& event) {
  const std::string error = message_of(event.status);
  base::log_event(*environment_.log,
                  base::LogLevel::warn,
                  "a sequence failed",
                  {{"index", event.index}, {"error", error}},
                  call_log_.trace().trace_id);
}

// Has the dispatcher advance the call. A write under way does so by itself when it ends, but an
// early end does not wait for that.
void GenerateCall::wake() {
  if (!started_ || queued_ || (writing_ && !early_end_.has_value())) return;
  queued_ = true;
  environment_.dispatcher.post(shared_from_this());
}

void GenerateCall::run() {
  std::optional<absl::Status> early_end;
  {
    const base::MutexLock lock(mu_);
    queued_ = false;
    early_end = early_end_;
  }
  if (early_end.has_value()) cancel_request(*early_end);
  advance();
}

void GenerateCall::end_early(const absl::Status& why) {
  {
    const base::MutexLock lock(mu_);
    if (is_over()) return;
    early_end_ = why;
    buffer_.clear();
  }
  cancel_request(why);
  advance();
}

void GenerateCall::end_unless_complete(const absl::Status& why, Calls which) {
  {
    const base::MutexLock lock(mu_);
    if (buffer_.complete() || (which == Calls::kRunning && !ran_)) return;
  }
  end_early(why);
}

void GenerateCall::client_left() {
  const bool too_late = environment_.clock.now() + kClockTolerance >= deadline_;
  end_early(too_late ? deadline_exceeded("the deadline passed")
                     : cancelled("the client cancelled the call"));
}

void GenerateCall::cancel_request(const absl::Status& why) {
  RequestId id = 0;
  {
    const base::MutexLock lock(mu_);
    id = std::exchange(id_, 0);
  }
  if (id != 0) environment_.frontend.cancel(id, why);
}

std::optional<absl::Status> GenerateCall::take_early_end() {
  if (!may_send() || !early_end_.has_value()) return std::nullopt;
  settled_ = early_end_;
  if (writing_) limit_tail();
  return early_end_;
}

std::optional<absl::Status> GenerateCall::end_thrown(bool took_end) {
  const absl::Status why = base::caught_status();
  {
    const base::MutexLock lock(mu_);
    writing_ = false;  // the message was not made
    if (took_end) {
      settled_ = why;
      return why;
    }
    if (!is_over()) {
      early_end_ = why;
      buffer_.clear();
    }
  }
  cancel_request(why);
  const base::MutexLock lock(mu_);
  return take_early_end();
}

absl::Status GenerateCall::take_end() {
  absl::Status status = buffer_.status();
  settled_ = status;
  id_ = 0;
  return status;
}

// Without it a client that never reads would hold its call for as long as it likes.
void GenerateCall::limit_tail() {
  if (tail_alarm_.has_value()) return;
  tail_alarm_.emplace();
  tail_alarm_->Set(std::chrono::system_clock::now() + environment_.options.max_tail_time,
                   [call = share(context_.c_call())](bool expired) {
                     if (expired) grpc_call_cancel(call.get(), nullptr);
                   });
}

void GenerateCall::close() {
  std::shared_ptr<GenerateCall> last_share;  // let go after the lock
  const base::MutexLock lock(mu_);
  tail_alarm_.reset();
  const TimePoint end = environment_.clock.now();
  const absl::Status status = settled_.value_or(absl::UnknownError("the call ended without one"));
  environment_.metrics.request(
      traits_.method, code_name(status.code()), seconds_between(arrival_, end));
  call_log_.write(*environment_.log, environment_.options.log_requests, status, end);
  if (traits_.max_unread_tokens.has_value()) environment_.metrics.streams_open(-1);
  environment_.open_calls.remove(this);
  last_share = std::move(grpc_share_);
}

}  // namespace r1d::transport
