// SPDX-License-Identifier: Apache-2.0
#include "r1d/tokenizer/tokenizer_config.h"

#include <utility>

#include "r1d/base/file.h"
#include "r1d/base/json.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"

namespace r1d::tokenizer {
namespace {

constexpr JsonLimits kConfigLimits{4 << 20, 32, 4096, 200'000};
constexpr int64_t kMaxTemplateBytes = 1 << 20;

// A token is its text, or an object with its text as "content".
absl::Status read_token(const Json& root, const char* name, std::string& target) {
  const auto found = root.find(name);
  if (found == root.end() || found->is_null()) return absl::OkStatus();
  const Json* text = &*found;
  if (text->is_object() && text->contains("content")) text = &(*text)["content"];
  if (!text->is_string()) {
    return invalid_argument(
        "{}: expected a text or an object with \"content\", found {}", name, describe(*found));
  }
  target = text->get<std::string>();
  return absl::OkStatus();
}

absl::Status read_named_templates(const Json& list, TokenizerConfig& config) {
  for (const Json& entry : list) {
    const bool is_named = entry.is_object() && entry.contains("name") &&
                          entry["name"].is_string() && entry.contains("template") &&
                          entry["template"].is_string();
    if (!is_named) {
      return invalid_argument(
          "chat_template: expected objects with \"name\" and \"template\", found {}",
          describe(entry));
    }
    config.named_templates[entry["name"].get<std::string>()] = entry["template"].get<std::string>();
  }
  if (const auto found = config.named_templates.find("default");
      found != config.named_templates.end()) {
    config.chat_template = found->second;
  }
  return absl::OkStatus();
}

absl::Status read_chat_template(const Json& root, TokenizerConfig& config) {
  const auto found = root.find("chat_template");
  if (found == root.end() || found->is_null()) return absl::OkStatus();
  if (found->is_array()) return read_named_templates(*found, config);
  if (!found->is_string()) {
    return invalid_argument("chat_template: expected a text or an array, found {}",
                            describe(*found));
  }
  config.chat_template = found->get<std::string>();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerConfig> parse_tokenizer_config(const std::string& text) {
  R1D_ASSIGN_OR_RETURN(const Json root, parse_json(text, kConfigLimits));
  if (!root.is_object()) return invalid_argument("expected an object, found {}", describe(root));
  TokenizerConfig config;
  R1D_RETURN_IF_ERROR(read_token(root, "bos_token", config.bos_token));
  R1D_RETURN_IF_ERROR(read_token(root, "eos_token", config.eos_token));
  R1D_RETURN_IF_ERROR(read_chat_template(root, config));
  if (const auto found = root.find("add_bos_token"); found != root.end() && !found->is_null()) {
    if (!found->is_boolean())
      return invalid_argument("add_bos_token: expected true or false, found {}", describe(*found));
    config.add_bos_token = found->get<bool>();
  }
  return config;
}

absl::StatusOr<TokenizerConfig> load_tokenizer_config(const std::string& dir) {
  TokenizerConfig config;
  const std::string path = dir + "/tokenizer_config.json";
  const absl::StatusOr<std::string> text = read_text_file(path, kConfigLimits.max_bytes);
  if (text.ok()) {
    absl::StatusOr<TokenizerConfig> parsed = parse_tokenizer_config(*text);
    if (!parsed.ok()) return with_context(parsed.status(), path);
    config = *std::move(parsed);
  } else if (!absl::IsNotFound(text.status())) {
    return with_context(text.status(), path);
  }
  const std::string template_path = dir + "/chat_template.jinja";
  absl::StatusOr<std::string> source = read_text_file(template_path, kMaxTemplateBytes);
  if (source.ok())
    config.chat_template = *std::move(source);
  else if (!absl::IsNotFound(source.status()))
    return with_context(source.status(), template_path);
  return config;
}

}  // namespace r1d::tokenizer
