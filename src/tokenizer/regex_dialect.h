// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace r1d::tokenizer {

// A pattern of tokenizer.json, written for Oniguruma, as PCRE2 must read it to match the same text.
// \s and \S become the 25 characters of White_Space (PCRE2 counts U+180E too); \p{L}, \p{M}, \p{N},
// \p{P} and \p{S} also cover what Unicode 15 and 16 added, since PCRE2 10.42 stops at Unicode 14.
// kInvalidArgument for constructs that the two read differently.
[[nodiscard]] absl::StatusOr<std::string> to_pcre2(std::string_view pattern);

}  // namespace r1d::tokenizer
