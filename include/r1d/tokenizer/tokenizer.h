// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, as the checkpoint's tokenizer.json says: the byte-level BPE family of
// DeepSeek V3/R1, Qwen2 and Llama 3.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "r1d/base/types.h"

namespace r1d::tokenizer {

// What the text of an added token ("<think>", "<|EOT|>") becomes where it stands in a text.
enum class AddedTokens : uint8_t {
  kMatch,  // its id: text that we or a chat template wrote
  kPlain,  // ordinary tokens that spell it: text that somebody else wrote
};

// A part of a text, and whether the texts of added tokens in it count.
struct Segment {
  std::string_view text;
  AddedTokens added = AddedTokens::kMatch;
};

// Result for result what Hugging Face `tokenizers` gives. No input takes more than n log n time.
// Threads: const after load, any number of threads.
class Tokenizer {
 public:
  // The text of a tokenizer.json. Refuses by name what it does not implement.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<const Tokenizer>> parse(
      std::string_view tokenizer_json);
  // A tokenizer.json, or a directory that has one; errors begin with the path. kNotFound when there
  // is none.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<const Tokenizer>> load(
      const std::string& path);

  virtual ~Tokenizer() = default;

  // Appends the ids of the segments' joined text; adds no BOS. An added token counts where all of
  // it lies in neighbouring kMatch segments; otherwise borders between segments change nothing.
  // kInvalidArgument where the text is not UTF-8, with the byte.
  [[nodiscard]] virtual absl::Status encode(std::span<const Segment> segments,
                                            std::vector<TokenId>& ids) const = 0;

  // The bytes a token stands for, which need not be whole characters. Empty for ids that no token
  // has.
  [[nodiscard]] virtual std::string_view bytes_of(TokenId id) const = 0;

  // The id of the added token that is written so.
  [[nodiscard]] virtual std::optional<TokenId> find_added(std::string_view content) const = 0;
  [[nodiscard]] virtual bool is_added(TokenId id) const = 0;
  // Added, and flagged special: decode can leave it out.
  [[nodiscard]] virtual bool is_special(TokenId id) const = 0;
  // Whether the post-processor puts this token before a text; tokenizer_config.json decides above
  // it.
  [[nodiscard]] virtual std::optional<TokenId> prefix_token() const = 0;

  [[nodiscard]] virtual TokenId last_id() const = 0;

  // The text of `ids`; invalid UTF-8 becomes U+FFFD.
  [[nodiscard]] std::string decode(std::span<const TokenId> ids, bool skip_special = false) const;
};

// The ids of one text.
[[nodiscard]] absl::StatusOr<std::vector<TokenId>> encode(const Tokenizer& tokenizer,
                                                          std::string_view text,
                                                          AddedTokens added);

}  // namespace r1d::tokenizer
