// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/control_tokens.h"

namespace r1d::chat {

ControlTokens ControlTokens::resolve(
    const std::function<std::optional<int32_t>(std::string_view)>& id_of) {
  ControlTokens tokens;
  for (ControlToken* token : {&tokens.think,
                              &tokens.end_think,
                              &tokens.tool_calls_begin,
                              &tokens.tool_calls_end,
                              &tokens.tool_call_begin,
                              &tokens.tool_call_end,
                              &tokens.tool_sep}) {
    token->id = id_of(token->text);
  }
  return tokens;
}

}  // namespace r1d::chat
