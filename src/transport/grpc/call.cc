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

GenerateCall::GenerateCall(const char* method,
                           std::optional<int32_t> max_unread_tokens,
                           CallEnvironment& environment,
                           grpc::CallbackServerContext& context,
                           const v1::GenerateRequest& message)
    : environment_(environment),
      context_(context),
      logprobs_(message.sampling().has_logprobs()),
      buffer_(message.sampling().has_n() ? message.sampling().n() : 1),
      method_(method),
      max_unread_tokens_(max_unread_tokens),
      arrival_(environment.clock.now()),
      deadline_(deadline()) {}

// The client's deadline, but no later than the server's own limit.
TimePoint GenerateCall::deadline() const {
  const auto limit = environment_.options.max_request_time;
  if (context_.deadline() == std::chrono::system_clock::time_point::max()) return arrival_ + limit;
  const auto left = context_.deadline() - std::chrono::system_clock::now();
  return arrival_ + std::min<Duration>(left, limit);
}

void GenerateCall::start(const v1::GenerateRequest& message) {
  environment_.open_calls.add();
  if (max_unread_tokens_.has_value()) environment_.metrics.streams_open(+1);
  admission::GenerateRequest request = request_from_proto(message);
  request.deadline = deadline_;
  const auto id = environment_.frontend.submit(request, shared_from_this());
  const std::string name = id.ok() ? fmt::format("{}-{}", environment_.id_prefix, *id) : "";
  if (id.ok()) {
    context_.AddInitialMetadata("x-request-id", name);
    send_initial_metadata();
  }
  {
    const base::MutexLock lock(mu_);
    if (id.ok()) {
      id_ = *id;
      request_name_ = name;
    } else {
      early_end_ = id.status();
    }
    grpc_share_ = shared_from_this();
    started_ = true;
  }
  run();
}

void GenerateCall::on_token(scheduler::TokenEvent event) {
  const base::MutexLock lock(mu_);
  if (is_over()) return;
  buffer_.add(std::move(event));
  if (!max_unread_tokens_.has_value()) return;
  if (buffer_.num_unread() > *max_unread_tokens_) {
    early_end_ = resource_exhausted("slow consumer: more than {} tokens were left unread",
                                    *max_unread_tokens_);
    buffer_.clear();
    environment_.metrics.slow_consumer();
  }
  wake();
}

void GenerateCall::on_finish(const scheduler::FinishEvent& event) {
  const base::MutexLock lock(mu_);
  if (is_over()) return;
  buffer_.add(event);
  if (buffer_.complete()) limit_tail();
  if (buffer_.complete() || max_unread_tokens_.has_value()) wake();
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
  environment_.metrics.request(method_,
                               code_name(settled_.value_or(absl::StatusCode::kUnknown)),
                               seconds_between(arrival_, environment_.clock.now()));
  if (max_unread_tokens_.has_value()) environment_.metrics.streams_open(-1);
  environment_.open_calls.remove();
  last_share = std::move(grpc_share_);
}

}  // namespace r1d::transport
