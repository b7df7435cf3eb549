// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>

#include <absl/status/statusor.h>

namespace r1d::tokenizer {

// What r1d reads of tokenizer_config.json and chat_template.jinja.
struct TokenizerConfig {
  std::string bos_token;  // texts; empty when there is none
  std::string eos_token;
  std::optional<bool> add_bos_token;  // before raw text; chat templates write it themselves
  // The template named "default", or the only one; chat_template.jinja goes before it.
  std::optional<std::string> chat_template;
  // Further named ones ("tool_use").
  std::map<std::string, std::string> named_templates;
};

// Reads both files of a model directory; each may be missing. Errors name file and field.
[[nodiscard]] absl::StatusOr<TokenizerConfig> load_tokenizer_config(const std::string& dir);

// The text of a tokenizer_config.json.
[[nodiscard]] absl::StatusOr<TokenizerConfig> parse_tokenizer_config(const std::string& text);

}  // namespace r1d::tokenizer
