// SPDX-License-Identifier: Apache-2.0
#include "chat/tools_prompt.h"

#include "r1d/chat/control_tokens.h"

namespace r1d::chat {

std::vector<Segment> tools_prompt(const Json& tools) {
  const ControlTokens tags;
  std::vector<Segment> prompt;
  prompt.push_back(
      {"You can call the functions below when they help to answer. To call one, end your answer "
       "with "
       "this, the name and the arguments filled in:\n\n" +
           tags.tool_calls_begin.text + tags.tool_call_begin.text + "function" +
           tags.tool_sep.text + "NAME\n```json\n{\"ARGUMENT\": \"VALUE\"}\n```" +
           tags.tool_call_end.text + tags.tool_calls_end.text +
           "\n\nThe arguments are one JSON object. For several calls, repeat the part from " +
           tags.tool_call_begin.text + " to " + tags.tool_call_end.text +
           ". Without a need for a function, answer as usual.\n\n## Tools\n\n### Function\n\n"
           "You have the following functions available:\n\n",
       true});
  for (const Json& tool : tools) {
    prompt.push_back({"\n```json\n", true});
    prompt.push_back({tool.dump(-1, ' ', false, Json::error_handler_t::replace), false});
    prompt.push_back({"\n```\n", true});
  }
  return prompt;
}

}  // namespace r1d::chat
