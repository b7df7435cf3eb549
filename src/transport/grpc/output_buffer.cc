// SPDX-License-Identifier: Apache-2.0
#include "transport/grpc/output_buffer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "r1d/base/check.h"

namespace r1d::transport {
namespace {

// A sequence's own fault, as opposed to what ends the whole request (deadline, drain, lost engine).
bool is_own_fault(const scheduler::FinishEvent& event) {
  return event.reason == scheduler::FinishReason::kError && absl::IsInternal(event.status);
}

}  // namespace

OutputBuffer::Sequence& OutputBuffer::sequence(int32_t index) {
  R1D_CHECK(index >= 0 && index < num_sequences_);
  if (sequences_.size() <= static_cast<size_t>(index)) sequences_.resize(index + 1);
  return sequences_[index];
}

void OutputBuffer::add(scheduler::TokenEvent event) {
  sequence(event.index).tokens.push_back(std::move(event.token));
  ++num_unread_;
}

void OutputBuffer::add(const scheduler::FinishEvent& event) {
  Sequence& ended = sequence(event.index);
  R1D_CHECK(!ended.finish.has_value());
  ended.finish = event;
  ++num_finished_;
  ++num_untaken_finishes_;
}

void OutputBuffer::clear() {
  sequences_.clear();
  num_unread_ = 0;
  num_untaken_finishes_ = 0;
}

OutputPiece OutputBuffer::take(int64_t max_tokens) {
  R1D_CHECK(has_piece());
  do {
    next_ = (next_ + 1) % sequences_.size();
  } while (!sequences_[next_].has_piece());
  Sequence& from = sequences_[next_];

  OutputPiece piece;
  piece.index = static_cast<int32_t>(next_);
  const auto count = std::min<int64_t>(max_tokens, static_cast<int64_t>(from.tokens.size()));
  num_unread_ -= count;
  if (count == static_cast<int64_t>(from.tokens.size())) {
    piece.tokens = std::exchange(from.tokens, {});
  } else {
    const auto end = from.tokens.begin() + count;
    piece.tokens.assign(std::make_move_iterator(from.tokens.begin()), std::make_move_iterator(end));
    from.tokens.erase(from.tokens.begin(), end);
  }
  if (from.tokens.empty() && from.finish.has_value() && !from.finish_taken) {
    piece.finish = from.finish;
    from.finish_taken = true;
    --num_untaken_finishes_;
  }
  return piece;
}

absl::Status OutputBuffer::status() const {
  const scheduler::FinishEvent* fault = nullptr;
  bool any_ended_well = false;
  for (const Sequence& sequence : sequences_) {
    const scheduler::FinishEvent& event = *sequence.finish;
    if (event.status.ok()) {
      any_ended_well = true;
    } else if (!is_own_fault(event)) {
      return event.status;
    } else if (fault == nullptr) {
      fault = &event;
    }
  }
  return any_ended_well || fault == nullptr ? absl::OkStatus() : fault->status;
}

}  // namespace r1d::transport
