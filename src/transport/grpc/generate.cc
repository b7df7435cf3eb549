// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/generate.h"

#include <limits>
#include <utility>

#include "r1d/base/status.h"

#include "transport/grpc/convert.h"
#include "transport/grpc/status.h"

namespace r1d::transport {
namespace {

// With 20 log probabilities a token takes up to 300 bytes or so; this keeps a message well below
// the 4 MiB that clients take by default.
constexpr int64_t kMaxTokensPerMessage = 1024;

}  // namespace

GenerateStream::Turn GenerateStream::take_turn() {
  Turn turn;
  const base::MutexLock lock(mu_);
  turn.status = take_early_end();
  if (turn.status.has_value() || !may_send() || writing_ || !buffer_.has_piece()) return turn;
  writing_ = true;
  turn.piece = buffer_.take(kMaxTokensPerMessage);
  turn.request_name = std::exchange(request_name_, {});
  if (buffer_.complete() && !buffer_.has_piece()) turn.status = take_end();
  return turn;
}

void GenerateStream::advance() {
  Turn turn = take_turn();
  if (turn.piece.has_value()) {
    fill_response(*turn.piece, logprobs_, response_);
    response_.set_request_id(std::move(turn.request_name));
  }
  if (turn.piece.has_value() && turn.status.has_value()) {
    StartWriteAndFinish(&response_, {}, to_grpc_status(*turn.status, context_));
  } else if (turn.piece.has_value()) {
    StartWrite(&response_);
  } else if (turn.status.has_value()) {
    Finish(to_grpc_status(*turn.status, context_));
  }
}

void GenerateStream::OnWriteDone(bool ok) {
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

std::optional<absl::Status> GenerateOnceCall::take_status() {
  const base::MutexLock lock(mu_);
  if (auto early = take_early_end(); early.has_value()) return early;
  if (!may_send() || !buffer_.complete()) return std::nullopt;
  absl::Status status = take_end();
  if (status.ok()) fill_answer();
  return status;
}

void GenerateOnceCall::fill_answer() {
  response_.set_request_id(request_name_);
  std::vector<OutputPiece> pieces;
  while (buffer_.has_piece()) pieces.push_back(buffer_.take(std::numeric_limits<int64_t>::max()));
  for (size_t i = 0; i < pieces.size(); ++i) response_.add_choices();
  for (const OutputPiece& piece : pieces) {
    fill_choice(piece, logprobs_, *response_.mutable_choices(piece.index));
  }
  v1::Usage& usage = *response_.mutable_usage();
  usage.set_prompt_tokens(response_.choices(0).finish().usage().prompt_tokens());
  usage.set_cached_tokens(response_.choices(0).finish().usage().cached_tokens());
  for (const v1::Choice& choice : response_.choices()) {
    usage.set_output_tokens(usage.output_tokens() + choice.finish().usage().output_tokens());
  }
}

void GenerateOnceCall::advance() {
  const std::optional<absl::Status> status = take_status();
  if (status.has_value()) Finish(to_grpc_status(*status, context_));
}

}  // namespace r1d::transport
