// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <absl/status/status.h>

#include "r1d/scheduler/request.h"

namespace r1d::transport {

// Something new of one sequence.
struct OutputPiece {
  int32_t index = 0;
  std::vector<engine::SampledToken> tokens;
  std::optional<scheduler::FinishEvent> finish;  // after `tokens`, and nothing comes after it
};

// What a request has produced and its client has not been given yet.
// Invariant: a sequence's pieces come out in order, its finish last and once.
// Threads: externally locked.
class OutputBuffer {
 public:
  // `num_sequences` is only compared with, as it may not have been judged yet.
  explicit OutputBuffer(int32_t num_sequences) : num_sequences_(num_sequences) {}

  void add(scheduler::TokenEvent event);
  void add(const scheduler::FinishEvent& event);
  void clear();  // forgets what was not taken

  [[nodiscard]] int64_t num_unread() const { return num_unread_; }  // tokens
  [[nodiscard]] bool complete() const { return num_finished_ == num_sequences_; }
  [[nodiscard]] bool has_piece() const { return num_unread_ > 0 || num_untaken_finishes_ > 0; }

  // The next piece, of at most `max_tokens` tokens, sequences in turn. Needs has_piece().
  [[nodiscard]] OutputPiece take(int64_t max_tokens);

  // How the request ended; needs complete(). What ended it as a whole comes first; a fault of one
  // sequence counts only when no sequence ended well.
  [[nodiscard]] absl::Status status() const;

 private:
  struct Sequence {
    std::vector<engine::SampledToken> tokens;
    std::optional<scheduler::FinishEvent> finish;
    bool finish_taken = false;
    [[nodiscard]] bool has_piece() const { return !tokens.empty() || (finish && !finish_taken); }
  };

  Sequence& sequence(int32_t index);

  int32_t num_sequences_;
  int32_t num_finished_ = 0;
  int32_t num_untaken_finishes_ = 0;
  int64_t num_unread_ = 0;
  size_t next_ = 0;                  // whose turn it is
  std::vector<Sequence> sequences_;  // grows to the highest index seen
};

}  // namespace r1d::transport
