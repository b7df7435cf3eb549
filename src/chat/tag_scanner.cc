// SPDX-License-Identifier: Apache-2.0
#include "chat/tag_scanner.h"

namespace r1d::chat {
namespace {

constexpr std::array<Tag, kNumTags> kAllTags = {Tag::kThink,
                                                Tag::kEndThink,
                                                Tag::kToolCallsBegin,
                                                Tag::kToolCallsEnd,
                                                Tag::kToolCallBegin,
                                                Tag::kToolCallEnd,
                                                Tag::kToolSep};

}  // namespace

TagScanner::TagScanner(const ControlTokens& tokens, bool parse_tools)
    : tokens_{tokens.think, tokens.end_think} {
  if (!parse_tools) return;
  tokens_ = {tokens.think,
             tokens.end_think,
             tokens.tool_calls_begin,
             tokens.tool_calls_end,
             tokens.tool_call_begin,
             tokens.tool_call_end,
             tokens.tool_sep};
}

std::optional<Tag> TagScanner::by_id(int32_t token_id) const {
  for (const Tag tag : kAllTags) {
    if (token(tag).id == token_id) return tag;
  }
  return std::nullopt;
}

TagHit TagScanner::find(std::string_view text, TagSet wanted, bool is_last) const {
  for (size_t at = 0; at < text.size(); ++at) {
    const std::string_view rest = text.substr(at);
    bool may_become_tag = false;
    for (const Tag tag : kAllTags) {
      const ControlToken& candidate = token(tag);
      if (!wanted.has(tag) || candidate.id || candidate.text.empty()) continue;
      if (rest.starts_with(candidate.text)) return {at, tag};
      may_become_tag = may_become_tag || std::string_view(candidate.text).starts_with(rest);
    }
    if (may_become_tag && !is_last) return {at, std::nullopt};
  }
  return {text.size(), std::nullopt};
}

}  // namespace r1d::chat
