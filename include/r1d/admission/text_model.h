// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"
#include "r1d/chat/chat_template.h"
#include "r1d/chat/control_tokens.h"
#include "r1d/tokenizer/tokenizer.h"

namespace r1d::admission {

struct TextSettings {
  std::string model_dir;
  std::string tokenizer;      // a tokenizer.json or a directory of one; empty: model_dir
  std::string chat_template;  // a Jinja file; empty: what the tokenizer's directory has
  // Control tokens written inside messages count. Off: they stay plain text.
  bool match_control_tokens = false;
};

// What turns the served model's tokens into text and back: tokenizer, chat template, control
// tokens. Threads: const after load(), any number of threads.
class TextModel {
 public:
  // Null when there is no tokenizer.json. Other errors name the file.
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<const TextModel>> load(
      const TextSettings& settings);

  // A prompt in tokens.
  struct Prompt {
    std::vector<TokenId> ids;
    std::string text;           // what the chat template wrote
    bool in_reasoning = false;  // it ends inside an opened thought
  };

  // Raw text. With `plain`, control tokens stay text and no BOS is added.
  [[nodiscard]] absl::StatusOr<Prompt> encode(std::string_view text, bool plain) const;
  // A conversation through the chat template, which also sees `variables` (an object).
  // kFailedPrecondition when there is none.
  [[nodiscard]] absl::StatusOr<Prompt> encode(const chat::Conversation& conversation,
                                              const chat::Json& variables) const;

  [[nodiscard]] const tokenizer::Tokenizer& tokenizer() const { return *tokenizer_; }
  [[nodiscard]] const chat::ControlTokens& control_tokens() const { return control_tokens_; }
  [[nodiscard]] bool has_chat_template() const { return chat_template_.has_value(); }
  // The model has a token that ends a thought.
  [[nodiscard]] bool reasons() const { return control_tokens_.end_think.id.has_value(); }
  // What ends a thought early: "\n</think>\n\n" in tokens. Needs reasons().
  [[nodiscard]] const std::vector<TokenId>& thought_closing() const { return thought_closing_; }
  // Tokens that begin a turn: an answer that holds one has run away.
  [[nodiscard]] const std::vector<TokenId>& turn_tokens() const { return turn_tokens_; }

 private:
  TextModel() = default;
  [[nodiscard]] bool ends_in_thought(const std::vector<TokenId>& ids) const;

  std::unique_ptr<const tokenizer::Tokenizer> tokenizer_;
  std::optional<chat::ChatTemplate> chat_template_;
  chat::ControlTokens control_tokens_;
  std::vector<TokenId> thought_closing_;
  std::vector<TokenId> turn_tokens_;
  std::optional<TokenId> bos_;  // put before raw text
  tokenizer::AddedTokens in_messages_ = tokenizer::AddedTokens::kPlain;
};

}  // namespace r1d::admission
