// SPDX-License-Identifier: Apache-2.0
// GPT-2's byte alphabet: tokenizer.json writes each byte of a token as one printable character.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace r1d::tokenizer {

// The bytes that `written` stands for; none when a character is not of the alphabet.
[[nodiscard]] std::optional<std::string> bytes_from_alphabet(std::string_view written);

}  // namespace r1d::tokenizer
