// SPDX-License-Identifier: Apache-2.0
// UTF-8 as Python's str shows it: positions count code points. All but is_valid_utf8 take valid
// text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace r1d::jinja {

[[nodiscard]] bool is_valid_utf8(std::string_view text);

// Reads the code point at `*at` and moves `*at` behind it.
char32_t take_code_point(std::string_view text, size_t* at);
void append_code_point(std::string* out, char32_t code_point);

[[nodiscard]] size_t count_code_points(std::string_view text);
// Byte offset of the code point with this index; text.size() when there are not so many.
[[nodiscard]] size_t offset_of(std::string_view text, size_t index);

// What str.isspace, str.strip and str.split call white space.
[[nodiscard]] bool is_space(char32_t code_point);
// Where str.splitlines cuts.
[[nodiscard]] bool is_line_break(char32_t code_point);

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

// What stays when the code points in `chars` (white space when it is null) are cut from both ends.
struct StripSides {
  bool left = true;
  bool right = true;
};
[[nodiscard]] ByteRange stripped(std::string_view text,
                                 const std::string_view* chars,
                                 StripSides sides);

// Position of `needle` at or after `from`, or npos. Linear for any needle, which std::string's is
// not.
[[nodiscard]] size_t find_bytes(std::string_view text, std::string_view needle, size_t from);

}  // namespace r1d::jinja
