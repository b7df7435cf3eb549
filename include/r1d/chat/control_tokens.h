// SPDX-License-Identifier: Apache-2.0
// The tags that structure a model's output, by token id where the tokenizer has one for them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace r1d::chat {

// With an id, that token alone is the tag, and the same characters in ordinary tokens are text.
// Without one, the characters are the tag: the R1 distills write the tool tags as ordinary text.
struct ControlToken {
  std::string text;  // a tag with neither text nor id does not exist
  std::optional<int32_t> id;
};

// DeepSeek's tags. The bars are U+FF5C and the gaps U+2581, not ASCII.
struct ControlTokens {
  ControlToken think{"<think>", std::nullopt};
  ControlToken end_think{"</think>", std::nullopt};
  ControlToken tool_calls_begin{"<\uFF5Ctool\u2581calls\u2581begin\uFF5C>", std::nullopt};
  ControlToken tool_calls_end{"<\uFF5Ctool\u2581calls\u2581end\uFF5C>", std::nullopt};
  ControlToken tool_call_begin{"<\uFF5Ctool\u2581call\u2581begin\uFF5C>", std::nullopt};
  ControlToken tool_call_end{"<\uFF5Ctool\u2581call\u2581end\uFF5C>", std::nullopt};
  ControlToken tool_sep{"<\uFF5Ctool\u2581sep\uFF5C>", std::nullopt};

  // DeepSeek's tags with the ids that a tokenizer has for them. `id_of` gives the id of an added
  // token.
  [[nodiscard]] static ControlTokens resolve(
      const std::function<std::optional<int32_t>(std::string_view)>& id_of);
};

}  // namespace r1d::chat
