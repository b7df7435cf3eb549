// SPDX-License-Identifier: Apache-2.0
// The text of a tokenizer.json -> what of it decides how r1d tokenizes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "r1d/base/types.h"

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"

namespace r1d::tokenizer {

struct TokenizerSpec {
  std::vector<VocabEntry> vocabulary;
  std::vector<MergeRule> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added;
  bool nfc = false;
  std::vector<std::string> splits;  // patterns, in order
  std::optional<TokenId> prefix_token;
};

// kInvalidArgument names what is wrong or not supported by its path in the file.
[[nodiscard]] absl::StatusOr<TokenizerSpec> parse_tokenizer_json(std::string_view text);

}  // namespace r1d::tokenizer
