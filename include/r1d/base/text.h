// SPDX-License-Identifier: Apache-2.0
// Text of others, made fit for a message of ours; UTF-8.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include <absl/status/status.h>

namespace r1d {

// `text` fit for one line of a log: bytes outside printable ASCII become '?', a long text is cut.
[[nodiscard]] std::string printable(std::string_view text, size_t max_chars = 160);

// "context: message", same code.
[[nodiscard]] absl::Status with_context(const absl::Status& status, std::string_view context);

// One step through UTF-8.
struct Utf8Step {
  size_t size = 1;         // bytes of the character, or of the maximal invalid part (1 to 3)
  bool valid = false;      // a whole character
  bool truncated = false;  // not valid, but more bytes could make it so
};

// What stands at the front of `text`, which must not be empty. Invalid parts are cut as Unicode 15
// section 3.9 (table 3-8) and the WHATWG decoder do: one U+FFFD each.
[[nodiscard]] Utf8Step utf8_step(std::string_view text);

// The offset of the first byte that is not part of a valid character; none in valid text.
[[nodiscard]] std::optional<size_t> find_invalid_utf8(std::string_view text);

// Appends `bytes` to `out`, each invalid part as U+FFFD.
void append_as_utf8(std::string_view bytes, std::string& out);

}  // namespace r1d
