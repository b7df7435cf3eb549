// SPDX-License-Identifier: Apache-2.0
// `r1d render`: what a chat template makes of a conversation.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "r1d/admission/text_model.h"
#include "r1d/base/json.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

#include "cli/commands.h"

namespace r1d::cli {
namespace {

using chat::Json;

constexpr JsonLimits kConversationJson{64 << 20, 64, 4096, 4'000'000};

// What a conversation file may hold: {"messages": [...], "tools": [...], "variables": {...}}, or
// the messages alone.
struct Input {
  chat::Conversation conversation;
  Json variables = Json::object();
};

std::string text_or_empty(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

absl::StatusOr<chat::MessageToolCall> call_of(const Json& value, const std::string& path) {
  const Json* function =
      value.is_object() && value.contains("function") ? &value["function"] : nullptr;
  if (function == nullptr || !function->is_object()) {
    return invalid_argument("{}.function: expected an object", path);
  }
  chat::MessageToolCall call;
  call.id = text_or_empty(value, "id");
  if (value.contains("type")) call.type = text_or_empty(value, "type");
  call.name = text_or_empty(*function, "name");
  if (function->contains("arguments")) {
    const Json& arguments = (*function)["arguments"];
    call.arguments = arguments.is_string() ? arguments.get<std::string>() : arguments.dump();
  }
  return call;
}

absl::StatusOr<chat::Message> message_from(const Json& value, const std::string& path) {
  if (!value.is_object()) return invalid_argument("{}: expected an object", path);
  chat::Message message;
  message.role = text_or_empty(value, "role");
  if (const auto content = value.find("content"); content != value.end() && !content->is_null()) {
    if (!content->is_string()) return invalid_argument("{}.content: expected a text", path);
    message.content = content->get<std::string>();
  }
  message.tool_call_id = text_or_empty(value, "tool_call_id");
  message.name = text_or_empty(value, "name");
  const auto calls = value.find("tool_calls");
  if (calls == value.end() || calls->is_null()) return message;
  if (!calls->is_array()) return invalid_argument("{}.tool_calls: expected an array", path);
  for (size_t i = 0; i < calls->size(); ++i) {
    R1D_ASSIGN_OR_RETURN(chat::MessageToolCall call,
                         call_of((*calls)[i], fmt::format("{}.tool_calls[{}]", path, i)));
    message.tool_calls.push_back(std::move(call));
  }
  return message;
}

absl::StatusOr<Input> parse_input(const std::string& text) {
  JsonGuard guard(kConversationJson);
  R1D_RETURN_IF_ERROR(walk_json(text, guard));
  const Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Json* messages = &root;
  Input input;
  if (root.is_object()) {
    if (!root.contains("messages")) return invalid_argument("messages: missing");
    messages = &root["messages"];
    if (root.contains("tools") && root["tools"].is_array())
      input.conversation.tools = root["tools"];
    if (root.contains("variables")) input.variables = root["variables"];
  }
  if (!messages->is_array() || messages->empty()) {
    return invalid_argument("messages: expected an array of at least one");
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    R1D_ASSIGN_OR_RETURN(chat::Message message,
                         message_from((*messages)[i], fmt::format("messages[{}]", i)));
    input.conversation.messages.push_back(std::move(message));
  }
  return input;
}

}  // namespace

absl::Status render(const RenderOptions& options) {
  R1D_ASSIGN_OR_RETURN(const auto text,
                       admission::TextModel::load({.model_dir = "",
                                                   .tokenizer = options.tokenizer,
                                                   .chat_template = options.chat_template,
                                                   .match_control_tokens = false}));
  const std::string json{std::istreambuf_iterator<char>(std::cin), {}};
  const absl::StatusOr<Input> input = parse_input(json);
  if (!input.ok()) return with_context(input.status(), "standard input");
  R1D_ASSIGN_OR_RETURN(const admission::TextModel::Prompt prompt,
                       text->encode(input->conversation, input->variables));
  if (options.ids) {
    std::cout << Json{{"prompt", prompt.text}, {"ids", prompt.ids}}.dump() << '\n';
  } else {
    std::cout << prompt.text;
  }
  if (!std::cout.flush()) return data_loss("standard output: cannot be written");
  return absl::OkStatus();
}

}  // namespace r1d::cli
