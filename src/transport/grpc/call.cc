// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <grpc/grpc.h>

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
      arrival_(environment.clock.now()),
      deadline_(deadline()) {}

// The client's deadline, but no later than the server's own limit.
TimePoint GenerateCall::deadline() const {
  const auto limit = environment_.options.max_request_time;
  if (context_.deadline() == std::chrono::system_clock::time_point::max()) return arrival_ + limit;
  const auto left = context_.deadline() - std::chrono::system_clock::now();
  return arrival_ + std::min<Duration>(left, limit);
}

void GenerateCall::start(admission::GenerateRequest request) {
  environment_.open_calls.add();
  environment_.metrics.started(traits_.method);
  if (traits_.max_unread_tokens.has_value()) environment_.metrics.streams_open(+1);
  request.deadline = deadline_;
  auto accepted = environment_.frontend.submit(request, shared_from_this());
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

void GenerateCall::on_token(scheduler::TokenEvent event) {
  const base::MutexLock lock(mu_);
  if (is_over()) return;
  buffer_.add(std::move(event));
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
  if (is_over()) return;
  buffer_.add(event);
  if (buffer_.complete()) limit_tail();
  if (buffer_.complete() || traits_.max_unread_tokens.has_value()) wake();
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
  settled_ = early_end_->code();
  if (writing_) limit_tail();
  return early_end_;
}

absl::Status GenerateCall::take_end() {
  absl::Status status = buffer_.status();
  settled_ = status.code();
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
  environment_.metrics.request(traits_.method,
                               code_name(settled_.value_or(absl::StatusCode::kUnknown)),
                               seconds_between(arrival_, environment_.clock.now()));
  if (traits_.max_unread_tokens.has_value()) environment_.metrics.streams_open(-1);
  environment_.open_calls.remove();
  last_share = std::move(grpc_share_);
}

}  // namespace r1d::transport
