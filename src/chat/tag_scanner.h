// SPDX-License-Identifier: Apache-2.0
// Finds the tags of a model's output: by token id, and in text for those that have none.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "r1d/chat/control_tokens.h"

namespace r1d::chat {

enum class Tag : uint8_t {
  kThink,
  kEndThink,
  kToolCallsBegin,
  kToolCallsEnd,
  kToolCallBegin,
  kToolCallEnd,
  kToolSep,
};
inline constexpr size_t kNumTags = 7;

class TagSet {
 public:
  constexpr TagSet(std::initializer_list<Tag> tags) {
    for (const Tag tag : tags) bits_ |= 1u << static_cast<unsigned>(tag);
  }
  [[nodiscard]] constexpr bool has(Tag tag) const {
    return (bits_ >> static_cast<unsigned>(tag) & 1u) != 0;
  }

 private:
  unsigned bits_ = 0;
};

// Text that is certainly no tag, and the tag right behind it. Neither: all of the text may become a
// tag.
struct TagHit {
  size_t text_bytes = 0;
  std::optional<Tag> tag;
};

// Const after construction. Without `parse_tools` the tool tags do not exist.
class TagScanner {
 public:
  TagScanner(const ControlTokens& tokens, bool parse_tools);

  [[nodiscard]] std::optional<Tag> by_id(int32_t token_id) const;
  [[nodiscard]] const std::string& text_of(Tag tag) const { return token(tag).text; }

  // The first of `wanted` in `text`, among those without an id. A tail that further text could make
  // one of them is left out of `text_bytes`, unless nothing follows (`is_last`).
  [[nodiscard]] TagHit find(std::string_view text, TagSet wanted, bool is_last) const;

 private:
  [[nodiscard]] const ControlToken& token(Tag tag) const {
    return tokens_[static_cast<size_t>(tag)];
  }

  std::array<ControlToken, kNumTags> tokens_;
};

}  // namespace r1d::chat
