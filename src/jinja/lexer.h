// SPDX-License-Identifier: Apache-2.0
// Source text -> tokens, with the white-space rules of trim_blocks and lstrip_blocks applied.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

namespace r1d::jinja {

struct Token {
  enum class Kind {
    kData,  // text outside of tags
    kBlockBegin,
    kBlockEnd,
    kVariableBegin,
    kVariableEnd,
    kName,
    kString,  // decoded
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 1;
};

// Ends with a kEnd token. kInvalidArgument names the line: unterminated tags, comments and strings,
// brackets that do not match, characters that begin nothing.
[[nodiscard]] absl::StatusOr<std::vector<Token>> tokenize(std::string_view source);

}  // namespace r1d::jinja
