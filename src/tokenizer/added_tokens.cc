// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace r1d::tokenizer {

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) : nodes_(1) {
  for (const AddedToken& token : tokens) {
    size_t at = 0;
    for (const char byte : token.content) {
      auto& children = nodes_[at].children;
      const auto place = std::lower_bound(children.begin(), children.end(), std::pair(byte, 0));
      if (place != children.end() && place->first == byte) {
        at = static_cast<size_t>(place->second);
        continue;
      }
      children.insert(place, {byte, static_cast<int>(nodes_.size())});
      at = nodes_.size();
      nodes_.emplace_back();  // `children` is not valid from here on
    }
    nodes_[at].id = token.id;
  }
  for (const auto& [byte, node] : nodes_[0].children) first_bytes_ += byte;
}

const AddedTokenFinder::Node* AddedTokenFinder::child(const Node& node, char byte) const {
  const auto place = std::lower_bound(
      node.children.begin(), node.children.end(), byte, [](const auto& entry, char wanted) {
        return entry.first < wanted;
      });
  if (place == node.children.end() || place->first != byte) return nullptr;
  return &nodes_[static_cast<size_t>(place->second)];
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::find(std::string_view text,
                                                              size_t from) const {
  for (size_t begin = text.find_first_of(first_bytes_, from); begin != std::string_view::npos;
       begin = text.find_first_of(first_bytes_, begin + 1)) {
    std::optional<Match> longest;
    const Node* node = &nodes_[0];
    for (size_t end = begin; end < text.size() && node != nullptr;) {
      node = child(*node, text[end++]);
      if (node != nullptr && node->id >= 0) longest = {begin, end - begin, node->id};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

std::optional<TokenId> AddedTokenFinder::id_of(std::string_view content) const {
  const auto match = find(content, 0);
  if (!match || match->size != content.size()) return std::nullopt;
  return match->id;
}

}  // namespace r1d::tokenizer
