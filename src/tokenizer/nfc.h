// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace r1d::tokenizer {

// Unicode Normalization Form C of valid UTF-8. n log n, whatever the order of combining marks.
[[nodiscard]] std::string to_nfc(std::string_view text);

}  // namespace r1d::tokenizer
