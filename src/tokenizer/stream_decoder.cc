// SPDX-License-Identifier: Apache-2.0
#include "r1d/tokenizer/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "r1d/base/text.h"

namespace r1d::tokenizer {
namespace {

// Bytes at the end of `bytes` that more bytes could complete to a character: 0 to 3.
size_t incomplete_tail(std::string_view bytes) {
  constexpr size_t kLongest = 3;
  for (size_t size = std::min(kLongest, bytes.size()); size > 0; --size) {
    const std::string_view tail = bytes.substr(bytes.size() - size);
    const Utf8Step step = utf8_step(tail);
    if (step.truncated && step.size == size) return size;
  }
  return 0;
}

}  // namespace

std::string StreamDecoder::push(TokenId id) {
  pending_ += tokenizer_->bytes_of(id);
  const size_t keep = incomplete_tail(pending_);
  std::string text;
  append_as_utf8(std::string_view(pending_).substr(0, pending_.size() - keep), text);
  pending_.erase(0, pending_.size() - keep);
  return text;
}

std::string StreamDecoder::flush() {
  std::string text;
  append_as_utf8(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace r1d::tokenizer
