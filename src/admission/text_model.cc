// SPDX-License-Identifier: Apache-2.0
#include "r1d/admission/text_model.h"

#include <chrono>
#include <filesystem>
#include <utility>

#include "r1d/base/file.h"
#include "r1d/base/status.h"
#include "r1d/base/text.h"
#include "r1d/tokenizer/tokenizer_config.h"

namespace r1d::admission {
namespace {

using tokenizer::AddedTokens;
using tokenizer::Segment;

constexpr int64_t kMaxTemplateBytes = 1 << 20;
constexpr std::string_view kUser = "<\uFF5CUser\uFF5C>";
constexpr std::string_view kAssistant = "<\uFF5CAssistant\uFF5C>";

std::string directory_of(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return path;
  return std::filesystem::path(path).parent_path().string();
}

// The token put before raw text: tokenizer_config.json says whether, else the post-processor.
std::optional<TokenId> bos_of(const tokenizer::Tokenizer& tokenizer,
                              const tokenizer::TokenizerConfig& config) {
  if (!config.add_bos_token.has_value()) return tokenizer.prefix_token();
  if (!*config.add_bos_token) return std::nullopt;
  return tokenizer.find_added(config.bos_token);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TextModel>> TextModel::load(const TextSettings& settings) {
  const std::string& path = settings.tokenizer.empty() ? settings.model_dir : settings.tokenizer;
  auto loaded = tokenizer::Tokenizer::load(path);
  if (absl::IsNotFound(loaded.status()) && settings.tokenizer.empty()) {
    return std::shared_ptr<const TextModel>();
  }
  if (!loaded.ok()) return loaded.status();
  R1D_ASSIGN_OR_RETURN(tokenizer::TokenizerConfig config,
                       tokenizer::load_tokenizer_config(directory_of(path)));
  if (!settings.chat_template.empty()) {
    auto source = read_text_file(settings.chat_template, kMaxTemplateBytes);
    if (!source.ok()) return with_context(source.status(), settings.chat_template);
    config.chat_template = *std::move(source);
  }

  std::shared_ptr<TextModel> model(new TextModel);
  model->tokenizer_ = *std::move(loaded);
  if (config.chat_template) {
    auto parsed =
        chat::ChatTemplate::create(*config.chat_template, config.bos_token, config.eos_token);
    if (!parsed.ok()) return with_context(parsed.status(), "chat template");
    model->chat_template_ = *std::move(parsed);
  }
  const tokenizer::Tokenizer& tokenizer = *model->tokenizer_;
  model->control_tokens_ = chat::ControlTokens::resolve(
      [&](std::string_view text) { return tokenizer.find_added(text); });
  R1D_ASSIGN_OR_RETURN(model->thought_closing_,
                       tokenizer::encode(tokenizer, "\n</think>\n\n", AddedTokens::kMatch));
  for (const std::string_view turn : {std::string_view(config.bos_token), kUser, kAssistant}) {
    if (const auto id = tokenizer.find_added(turn)) model->turn_tokens_.push_back(*id);
  }
  model->bos_ = bos_of(tokenizer, config);
  if (settings.match_control_tokens) model->in_messages_ = AddedTokens::kMatch;
  return model;
}

absl::StatusOr<TextModel::Prompt> TextModel::encode(std::string_view text, bool plain) const {
  Prompt prompt;
  const Segment segment{text, plain ? AddedTokens::kPlain : AddedTokens::kMatch};
  R1D_RETURN_IF_ERROR(tokenizer_->encode(std::span(&segment, 1), prompt.ids));
  const bool has_bos = !prompt.ids.empty() && bos_ && prompt.ids.front() == *bos_;
  if (bos_ && !plain && !has_bos) prompt.ids.insert(prompt.ids.begin(), *bos_);
  prompt.in_reasoning = ends_in_thought(prompt.ids);
  return prompt;
}

absl::StatusOr<TextModel::Prompt> TextModel::encode(const chat::Conversation& conversation,
                                                    const chat::Json& variables) const {
  if (!chat_template_) {
    return failed_precondition(
        "this model has no chat template (tokenizer_config.json, chat_template.jinja)");
  }
  R1D_ASSIGN_OR_RETURN(const std::vector<chat::Segment> rendered,
                       chat_template_->render(conversation,
                                              {.add_generation_prompt = true,
                                               .variables = variables,
                                               .now = std::chrono::system_clock::now()}));
  Prompt prompt;
  std::vector<Segment> segments;
  for (const chat::Segment& part : rendered) {
    segments.push_back({part.text, part.trusted ? AddedTokens::kMatch : in_messages_});
    prompt.text += part.text;
  }
  R1D_RETURN_IF_ERROR(tokenizer_->encode(segments, prompt.ids));
  prompt.in_reasoning = ends_in_thought(prompt.ids);
  return prompt;
}

// <think>, or <think> and a line end.
bool TextModel::ends_in_thought(const std::vector<TokenId>& ids) const {
  const auto think = control_tokens_.think.id;
  if (!think || ids.empty()) return false;
  if (ids.back() == *think) return true;
  return ids.size() > 1 && ids[ids.size() - 2] == *think &&
         tokenizer_->bytes_of(ids.back()) == "\n";
}

}  // namespace r1d::admission
