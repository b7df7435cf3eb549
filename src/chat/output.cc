// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/output.h"

namespace r1d::chat {

void ChatOutput::add(const OutputEvent& event) {
  switch (event.kind) {
    case OutputEvent::Kind::kReasoning:
      reasoning += event.text;
      break;
    case OutputEvent::Kind::kContent:
      content += event.text;
      break;
    case OutputEvent::Kind::kToolCallBegin:
      tool_calls.push_back({.type = event.type, .name = event.name});
      break;
    case OutputEvent::Kind::kToolCallArguments:
      tool_calls.back().arguments += event.text;
      break;
    case OutputEvent::Kind::kToolCallEnd:
      tool_calls.back().malformed = event.malformed;
      break;
  }
}

}  // namespace r1d::chat
