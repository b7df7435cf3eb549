// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "r1d/base/types.h"
#include "r1d/tokenizer/tokenizer.h"

namespace r1d::tokenizer {

// Decodes one sequence token by token without ever giving out half a character. What push() and
// flush() return, joined, equals decode() of all ids, for any split.
// Holds back at most 3 bytes. Threads: confined. Borrows the tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  // The text that `id` completes.
  [[nodiscard]] std::string push(TokenId id);
  // The sequence is over: what was held back, as U+FFFD.
  [[nodiscard]] std::string flush();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  // the beginning of a character
};

}  // namespace r1d::tokenizer
