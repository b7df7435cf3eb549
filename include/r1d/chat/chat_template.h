// SPDX-License-Identifier: Apache-2.0
// A conversation as the model's own chat template writes it.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

#include "r1d/jinja/template.h"

namespace r1d::chat {

using Json = nlohmann::ordered_json;
using Segment = jinja::Segment;

// A call that the assistant made earlier in the conversation.
struct MessageToolCall {
  std::string id = {};
  std::string type = "function";
  std::string name = {};
  std::string arguments = {};  // JSON, an object
};

struct Message {
  std::string role;  // "system", "user", "assistant" or "tool"
  std::optional<std::string> content = {};
  // What the model thought. Never rendered: the models were trained on conversations without it.
  std::string reasoning_content = {};
  std::vector<MessageToolCall> tool_calls = {};  // of an assistant
  std::string tool_call_id = {};                 // of a tool: which call it answers
  std::string name = {};
};

struct Conversation {
  std::vector<Message> messages;
  Json tools = Json::array();  // function definitions in OpenAI's form
};

struct RenderOptions {
  bool add_generation_prompt = true;
  Json variables = Json::object();  // chat_template_kwargs of the request; counts as data
  // For templates that write the date.
  std::chrono::system_clock::time_point now = std::chrono::system_clock::now();
};

// Thread-safe: const after create().
class ChatTemplate {
 public:
  // `source` is Jinja; `bos` and `eos` are the texts of these tokens, empty where there are none.
  // kInvalidArgument names the line and what is wrong or not supported.
  [[nodiscard]] static absl::StatusOr<ChatTemplate> create(std::string_view source,
                                                           std::string bos,
                                                           std::string eos);

  // The prompt in segments. Trusted are the template's own text, the tokens and r1d's instructions
  // for tools; all that stands in the conversation is data, wherever the template puts it.
  //
  // Before the template sees them, messages are made alike: no empty tool_calls, content "" instead
  // of none; an assistant's empty content beside tool calls is none where the template asks for
  // that. A template that does not read `tools` gets them as text in the last system message.
  //
  // kInvalidArgument names the message ("messages[3].role: ..."), or says where the template failed
  // or why it refused; kResourceExhausted: a limit of jinja::Limits.
  [[nodiscard]] absl::StatusOr<std::vector<Segment>> render(const Conversation& conversation,
                                                            const RenderOptions& options) const;

  // Whether the template has a place of its own for tools.
  [[nodiscard]] bool reads_tools() const { return template_.reads("tools"); }

 private:
  // What the source shows of the form in which the template wants messages.
  struct Habits {
    bool asks_for_no_content = false;    // "message['content'] is none"
    bool wants_argument_object = false;  // "arguments | tojson": a string would be quoted again
  };

  ChatTemplate(jinja::Template parsed, Habits habits, std::string bos, std::string eos);

  absl::StatusOr<Json> message_json(const Message& message, size_t message_idx) const;
  absl::StatusOr<Json> tool_calls_json(const Message& message, size_t message_idx) const;
  absl::StatusOr<jinja::Inputs> inputs(const Conversation& conversation,
                                       const RenderOptions& options) const;

  jinja::Template template_;
  Habits habits_;
  std::string bos_;
  std::string eos_;
};

}  // namespace r1d::chat
