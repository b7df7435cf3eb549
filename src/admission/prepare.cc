// SPDX-License-Identifier: Apache-2.0
// What a request says in text, in tokens; and how its output is to be read.
#include "admission/prepare.h"

#include <algorithm>
#include <utility>

#include "r1d/admission/frontend.h"
#include "r1d/base/json.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d::admission {
namespace {

constexpr char kNoTokenizer[] = "this model has no tokenizer.json";
constexpr JsonLimits kRequestJson{1 << 20, 64, 4096, 100'000, /*quote=*/false};

// A path as we write it: "messages[2].tool_calls[0].arguments". Else it may be a client's text.
bool is_path(std::string_view text) {
  return text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
                  c == '[' || c == ']';
         });
}

// The error with a field: the one that its message begins with ("messages[2].role: ..."), else
// `field`.
absl::Status named(const absl::Status& status, const char* field) {
  if (status.ok() || !absl::IsInvalidArgument(status)) return status;
  const std::string message = message_of(status);
  const size_t colon = message.find(": ");
  const bool has_name =
      message.starts_with(field) && colon != std::string::npos && message.find(' ') == colon + 1;
  if (has_name && is_path(message.substr(0, colon)))
    return field_error(message.substr(0, colon), message.substr(colon + 2));
  return field_error(field, message);
}

// A JSON object that came as text.
absl::StatusOr<chat::Json> parse_object(const std::string& text, const std::string& field) {
  if (text.empty()) return chat::Json::object();
  JsonGuard guard(kRequestJson);
  if (const absl::Status walked = walk_json(text, guard); !walked.ok()) {
    return field_error(field, message_of(walked));
  }
  chat::Json object = chat::Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return field_error(field, "must be a JSON object");
  return object;
}

absl::StatusOr<chat::Json> tool_definition(const ChatInput::Tool& tool, const std::string& field) {
  if (tool.name.empty()) return field_error(field + ".name", "is missing");
  R1D_ASSIGN_OR_RETURN(chat::Json parameters, parse_object(tool.parameters, field + ".parameters"));
  chat::Json function;
  function["name"] = tool.name;
  function["description"] = tool.description;
  function["parameters"] = std::move(parameters);
  chat::Json definition;
  definition["type"] = "function";
  definition["function"] = std::move(function);
  return definition;
}

absl::StatusOr<chat::Conversation> conversation_of(const ChatInput& input, const Limits& limits) {
  if (input.messages.empty()) return field_error("messages", "is empty; at least one is needed");
  if (input.messages.size() > static_cast<size_t>(limits.max_messages)) {
    return field_error(
        "messages",
        fmt::format(
            "has {} entries; at most {} are allowed", input.messages.size(), limits.max_messages));
  }
  if (input.tools.size() > static_cast<size_t>(limits.max_tools)) {
    return field_error(
        "tools",
        fmt::format(
            "has {} entries; at most {} are allowed", input.tools.size(), limits.max_tools));
  }
  chat::Conversation conversation;
  conversation.messages = input.messages;
  for (size_t i = 0; i < input.tools.size(); ++i) {
    R1D_ASSIGN_OR_RETURN(chat::Json tool,
                         tool_definition(input.tools[i], fmt::format("tools[{}]", i)));
    conversation.tools.push_back(std::move(tool));
  }
  return conversation;
}

absl::StatusOr<TextModel::Prompt> prompt_of(const ChatInput& input,
                                            const Limits& limits,
                                            const TextModel* text) {
  if (text == nullptr) return failed_precondition("{}; send Generate with token_ids", kNoTokenizer);
  R1D_ASSIGN_OR_RETURN(const chat::Conversation conversation, conversation_of(input, limits));
  R1D_ASSIGN_OR_RETURN(const chat::Json variables,
                       parse_object(input.template_variables, "template_variables"));
  auto prompt = text->encode(conversation, variables);
  if (!prompt.ok()) return named(prompt.status(), "messages");
  return prompt;
}

absl::StatusOr<engine::ThinkingLimit> limit_thinking(int32_t budget,
                                                     const TextModel& text,
                                                     bool starts_open) {
  constexpr char kField[] = "thinking_budget";
  if (budget < 0) return field_error(kField, fmt::format("must be at least 0, is {}", budget));
  if (!text.reasons()) return field_error(kField, "this model has no token that ends a thought");
  return engine::ThinkingLimit{.max_tokens = budget,
                               .open = text.control_tokens().think.id,
                               .close = *text.control_tokens().end_think.id,
                               .closing = text.thought_closing(),
                               .starts_open = starts_open};
}

absl::Status prepare_stops(const GenerateRequest& request,
                           const TextModel* text,
                           OutputOptions& output) {
  constexpr char kField[] = "sampling.stop";
  if (request.stop.empty()) return absl::OkStatus();
  if (text == nullptr) return field_error(kField, kNoTokenizer);
  auto stops = chat::StopMatcher::create(request.stop, request.include_stop);
  if (!stops.ok()) return field_error(kField, message_of(stops.status()));
  output.stops = *std::move(stops);
  output.stop_texts = request.stop;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TextModel::Prompt> encode_text(const std::string& text,
                                              bool plain,
                                              const TextModel& model) {
  auto prompt = model.encode(text, plain);
  if (!prompt.ok()) return field_error("prompt.text", message_of(prompt.status()));
  return prompt;
}

absl::StatusOr<PreparedText> prepare_text(const GenerateRequest& request,
                                          const Limits& limits,
                                          const TextModel* text) {
  PreparedText prepared;
  R1D_RETURN_IF_ERROR(prepare_stops(request, text, prepared.output));
  if (request.prompt_text) {
    if (text == nullptr) {
      return field_error("prompt.text", fmt::format("{}; send prompt.token_ids", kNoTokenizer));
    }
    R1D_ASSIGN_OR_RETURN(prepared.prompt,
                         encode_text(*request.prompt_text, /*plain=*/false, *text));
  }
  if (!request.chat) return prepared;
  const ChatInput& chat = *request.chat;
  if (text != nullptr) prepared.stop_tokens = text->turn_tokens();
  R1D_ASSIGN_OR_RETURN(prepared.prompt, prompt_of(chat, limits, text));
  prepared.output.parser =
      chat::OutputParserOptions{.start_in_reasoning = prepared.prompt->in_reasoning,
                                .split_reasoning = !chat.keep_reasoning_in_content,
                                .parse_tools = !chat.tools.empty()};
  if (chat.thinking_budget) {
    R1D_ASSIGN_OR_RETURN(
        prepared.thinking_limit,
        limit_thinking(*chat.thinking_budget, *text, prepared.prompt->in_reasoning));
  }
  return prepared;
}

}  // namespace r1d::admission
