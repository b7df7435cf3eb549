// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "r1d/chat/chat_template.h"

namespace r1d::chat {

// How to call functions in DeepSeek's format, and the functions: for the end of the system text of
// templates that have no place for tools. The tags are trusted, the definitions are data.
[[nodiscard]] std::vector<Segment> tools_prompt(const Json& tools);

}  // namespace r1d::chat
