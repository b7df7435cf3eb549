// SPDX-License-Identifier: Apache-2.0
#include "r1d/chat/chat_template.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "r1d/base/status.h"

#include "chat/tools_prompt.h"

namespace r1d::chat {
namespace {

bool is_role(std::string_view role) {
  return role == "system" || role == "user" || role == "assistant" || role == "tool";
}

std::string_view without_leading_blanks(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\n"), text.size()));
  return text;
}

// Whether behind some `word` in the source one of `continuations` follows, blanks aside.
bool follows(std::string_view source,
             std::string_view word,
             std::initializer_list<std::vector<std::string_view>> continuations) {
  for (size_t at = source.find(word); at != std::string_view::npos; at = source.find(word, at)) {
    const bool is_whole = at == 0 || source[at - 1] != '_';  // not reasoning_content
    at += word.size();
    if (!is_whole) continue;
    std::string_view behind = source.substr(at);
    // ['content'] and ["content"] as well as .content
    if (behind.starts_with("']") || behind.starts_with("\"]")) behind.remove_prefix(2);
    for (const auto& pieces : continuations) {
      std::string_view rest = behind;
      const bool matches = std::all_of(pieces.begin(), pieces.end(), [&](std::string_view piece) {
        rest = without_leading_blanks(rest);
        if (!rest.starts_with(piece)) return false;
        rest.remove_prefix(piece.size());
        return true;
      });
      if (matches) return true;
    }
  }
  return false;
}

// Copying and printing JSON recurse over it, so depth is bounded before either is done.
bool is_deeper_than(const Json& json, int depth) {
  if (!json.is_structured()) return false;
  if (depth == 0) return true;
  return std::any_of(json.begin(), json.end(), [&](const Json& child) {
    return is_deeper_than(child, depth - 1);
  });
}

absl::Status check_json(std::string_view name,
                        const Json& json,
                        bool has_kind,
                        std::string_view kind) {
  constexpr int kMaxDepth = 100;
  if (!has_kind) return invalid_argument("{}: no JSON {}", name, kind);
  if (!is_deeper_than(json, kMaxDepth)) return absl::OkStatus();
  return invalid_argument("{}: nested deeper than {} levels", name, kMaxDepth);
}

absl::Status check_role(const Message& message, size_t message_idx) {
  if (!is_role(message.role)) {
    return invalid_argument("messages[{}].role: none of system, user, assistant, tool",
                            message_idx);
  }
  if (!message.tool_calls.empty() && message.role != "assistant") {
    return invalid_argument(
        "messages[{}].tool_calls: the role is '{}', not assistant", message_idx, message.role);
  }
  return absl::OkStatus();
}

// Puts r1d's own tools text behind the last system message, or in front as a system message:
// templates that collect system messages join them in order, or keep the last.
void add_tools_text(const Json& tools, Json* messages, jinja::MarkedTexts* marked) {
  const auto last = std::find_if(messages->rbegin(), messages->rend(), [](const Json& message) {
    return message["role"] == "system";
  });
  std::vector<Segment> text = tools_prompt(tools);
  size_t message_idx = 0;
  if (last == messages->rend()) {
    messages->insert(messages->begin(), Json{{"role", "system"}, {"content", ""}});
  } else {
    message_idx = static_cast<size_t>(std::distance(last, messages->rend())) - 1;
    const auto& content = (*messages)[message_idx]["content"].get_ref<const std::string&>();
    if (!content.empty()) text.insert(text.begin(), {{content, false}, {"\n\n", true}});
  }
  marked->emplace(fmt::format("/messages/{}/content", message_idx), std::move(text));
}

}  // namespace

ChatTemplate::ChatTemplate(jinja::Template parsed, Habits habits, std::string bos, std::string eos)
    : template_(std::move(parsed)), habits_(habits), bos_(std::move(bos)), eos_(std::move(eos)) {}

absl::StatusOr<ChatTemplate> ChatTemplate::create(std::string_view source,
                                                  std::string bos,
                                                  std::string eos) {
  auto parsed = jinja::Template::parse(source);
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(), "chat template: " + message_of(parsed.status()));
  }
  Habits habits;
  habits.asks_for_no_content =
      follows(source, "content", {{"is", "none"}, {"is", "not", "none"}, {"==", "none"}});
  habits.wants_argument_object =
      follows(source, "arguments", {{"|", "tojson"}, {"|", "items"}, {".items("}}) &&
      !follows(source, "arguments", {{"is", "string"}});
  return ChatTemplate(*std::move(parsed), habits, std::move(bos), std::move(eos));
}

absl::StatusOr<Json> ChatTemplate::tool_calls_json(const Message& message,
                                                   size_t message_idx) const {
  Json calls = Json::array();
  for (size_t i = 0; i < message.tool_calls.size(); ++i) {
    const MessageToolCall& call = message.tool_calls[i];
    Json arguments = call.arguments;
    if (habits_.wants_argument_object) {
      arguments = Json::parse(call.arguments, nullptr, false);
      if (!arguments.is_object()) {
        return invalid_argument(
            "messages[{}].tool_calls[{}].arguments: no JSON object", message_idx, i);
      }
    }
    Json function{{"name", call.name}, {"arguments", std::move(arguments)}};
    Json entry{{"id", call.id}, {"type", call.type}, {"function", std::move(function)}};
    calls.push_back(std::move(entry));
  }
  return calls;
}

absl::StatusOr<Json> ChatTemplate::message_json(const Message& message, size_t message_idx) const {
  R1D_RETURN_IF_ERROR(check_role(message, message_idx));
  Json json{{"role", message.role}, {"content", message.content.value_or("")}};
  if (!message.tool_calls.empty()) {
    const bool is_empty = message.content.value_or("").empty();
    if (is_empty && habits_.asks_for_no_content) json["content"] = nullptr;
    R1D_ASSIGN_OR_RETURN(json["tool_calls"], tool_calls_json(message, message_idx));
  }
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  if (!message.name.empty()) json["name"] = message.name;
  return json;
}

absl::StatusOr<jinja::Inputs> ChatTemplate::inputs(const Conversation& conversation,
                                                   const RenderOptions& options) const {
  const Json& variables = options.variables;
  const Json& tools = conversation.tools;
  R1D_RETURN_IF_ERROR(check_json("variables", variables, variables.is_object(), "object"));
  R1D_RETURN_IF_ERROR(check_json("tools", tools, tools.is_array(), "array"));
  jinja::Inputs inputs;
  inputs.now = options.now;
  inputs.data = variables;
  Json messages = Json::array();
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    R1D_ASSIGN_OR_RETURN(Json message, message_json(conversation.messages[i], i));
    messages.push_back(std::move(message));
  }
  if (!tools.empty()) {
    if (reads_tools()) {
      inputs.data["tools"] = tools;
    } else {
      add_tools_text(tools, &messages, &inputs.marked);
    }
  }
  inputs.data["messages"] = std::move(messages);
  inputs.trusted["add_generation_prompt"] = options.add_generation_prompt;
  inputs.trusted["bos_token"] = bos_;
  inputs.trusted["eos_token"] = eos_;
  return inputs;
}

absl::StatusOr<std::vector<Segment>> ChatTemplate::render(const Conversation& conversation,
                                                          const RenderOptions& options) const {
  R1D_ASSIGN_OR_RETURN(const jinja::Inputs prepared, inputs(conversation, options));
  auto segments = template_.render(prepared);
  if (!segments.ok()) {
    return absl::Status(segments.status().code(),
                        "chat template: " + message_of(segments.status()));
  }
  return segments;
}

}  // namespace r1d::chat
