// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/generate.h"

#include <limits>

#include "r1d/base/fault.h"
#include "r1d/base/status.h"

namespace r1d::transport {
namespace {

// With 20 log probabilities a token takes up to 300 bytes or so; this keeps a message well below
// the 4 MiB that clients take by default.
constexpr int64_t kMaxTokensPerMessage = 1024;

}  // namespace

template <typename Response>
void StreamCall<Response>::take_turn(Turn& turn) {
  turn = {};
  const base::MutexLock lock(mu_);
  if (reading_) return;
  turn.status = take_early_end();
  if (turn.status.has_value() || !may_send() || writing_ || !buffer_.has_piece()) return;
  writing_ = reading_ = true;
  turn.piece = buffer_.take(kMaxTokensPerMessage);
  turn.request_name = std::exchange(request_name_, {});
  if (buffer_.complete() && !buffer_.has_piece()) turn.status = take_end();
}

template <typename Response>
bool StreamCall<Response>::fill(Turn& turn) {
  base::hit_fault(base::FaultPoint::kMessage);
  const int32_t index = turn.piece->index;
  response_.Clear();
  if (fill_response(index, read(*std::move(turn.piece)), answer_context(), response_)) {
    response_.set_request_id(std::move(turn.request_name));
    return true;
  }
  // Tokens behind a stop text. The first message of a stream is never empty.
  const base::MutexLock lock(mu_);
  writing_ = reading_ = false;
  return false;
}

template <typename Response>
typename StreamCall<Response>::Turn StreamCall<Response>::next_turn() {
  Turn turn;
  try {
    do {
      take_turn(turn);
    } while (turn.piece.has_value() && !fill(turn));
  } catch (...) {
    turn.status = this->end_thrown(turn.status.has_value());
    turn.piece.reset();
    const base::MutexLock lock(mu_);
    reading_ = false;
  }
  return turn;
}

template <typename Response>
bool StreamCall<Response>::play(const Turn& turn) {
  if (!turn.piece.has_value()) {
    if (turn.status.has_value()) this->Finish(to_grpc_status(*turn.status, context_));
    return false;
  }
  if (turn.status.has_value()) {
    this->StartWriteAndFinish(&response_, {}, to_grpc_status(*turn.status, context_));
    return false;
  }
  this->StartWrite(&response_);
  const base::MutexLock lock(mu_);
  reading_ = false;
  return true;
}

template <typename Response>
void StreamCall<Response>::advance() {
  while (play(next_turn())) {
  }
}

template <typename Response>
void StreamCall<Response>::OnWriteDone(bool ok) {
  ok = ok && base::hit_fault(base::FaultPoint::kWrite) == base::FaultAction::kNone;
  {
    const base::MutexLock lock(mu_);
    writing_ = false;
  }
  if (ok) {
    advance();
  } else {
    end_early(cancelled("the client is gone"));
  }
}

template <typename Response>
std::optional<absl::Status> OnceCall<Response>::take_status() {
  const base::MutexLock lock(mu_);
  if (auto early = take_early_end(); early.has_value()) return early;
  if (!may_send()) return std::nullopt;
  collect();
  if (!buffer_.complete()) return std::nullopt;
  absl::Status status = take_end();
  if (!status.ok()) response_.Clear();
  return status;
}

template <typename Response>
void OnceCall<Response>::collect() {
  base::hit_fault(base::FaultPoint::kMessage);
  while (response_.choices_size() < traits_.num_sequences) {
    response_.add_choices()->set_index(response_.choices_size() - 1);
  }
  if (response_.request_id().empty()) response_.set_request_id(request_name_);
  while (buffer_.has_piece()) {
    OutputPiece piece = buffer_.take(std::numeric_limits<int64_t>::max());
    auto& choice = *response_.mutable_choices(piece.index);
    add_to_choice(read(std::move(piece)), answer_context(), choice);
  }
  if (buffer_.complete()) sum_usage(response_);
}

template <typename Response>
void OnceCall<Response>::advance() {
  std::optional<absl::Status> status;
  try {
    status = take_status();
  } catch (...) {
    status = this->end_thrown(/*took_end=*/false);
  }
  if (status.has_value()) Finish(to_grpc_status(*status, context_));
}

template class StreamCall<v1::GenerateResponse>;
template class StreamCall<v1::ChatResponse>;
template class OnceCall<v1::GenerateOnceResponse>;
template class OnceCall<v1::ChatOnceResponse>;

}  // namespace r1d::transport
