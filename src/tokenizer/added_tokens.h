// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "r1d/base/types.h"

namespace r1d::tokenizer {

struct AddedToken {
  std::string content;
  TokenId id = 0;
  bool special = false;
};

// Finds added tokens in text: from the left, at each place the longest one that starts there. Work
// is at most text times longest token.
// Threads: const.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  struct Match {
    size_t begin = 0;
    size_t size = 0;
    TokenId id = 0;
  };
  // The first match at or after `from`.
  [[nodiscard]] std::optional<Match> find(std::string_view text, size_t from) const;
  // The token that is written exactly so.
  [[nodiscard]] std::optional<TokenId> id_of(std::string_view content) const;

 private:
  struct Node {
    TokenId id = -1;                             // a token ends here
    std::vector<std::pair<char, int>> children;  // sorted by byte
  };
  [[nodiscard]] const Node* child(const Node& node, char byte) const;

  std::string first_bytes_;
  std::vector<Node> nodes_;  // a trie; [0] is its root
};

}  // namespace r1d::tokenizer
