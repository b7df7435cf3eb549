// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/nfc.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <utf8proc.h>

#include "r1d/base/check.h"

namespace r1d::tokenizer {
namespace {

// No character below U+0300 takes part in a composition with the one before it.
bool is_surely_nfc(std::string_view text) {
  return std::none_of(
      text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) >= 0xCC; });
}

int combining_class(utf8proc_int32_t character) {
  return utf8proc_get_property(character)->combining_class;
}

std::vector<utf8proc_int32_t> decompose(std::string_view text) {
  constexpr size_t kLongest = 8;  // the longest canonical decomposition is 4
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  const auto* at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto* const end = at + text.size();
  while (at < end) {
    utf8proc_int32_t character = 0;
    at += utf8proc_iterate(at, end - at, &character);
    std::array<utf8proc_int32_t, kLongest> parts{};
    int last_boundclass = UTF8PROC_BOUNDCLASS_START;
    const auto count = utf8proc_decompose_char(
        character, parts.data(), parts.size(), UTF8PROC_DECOMPOSE, &last_boundclass);
    R1D_CHECK(count > 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()));
    characters.insert(characters.end(), parts.begin(), parts.begin() + count);
  }
  return characters;
}

// Runs of combining marks by class. utf8proc's own pass swaps neighbours, which is quadratic.
void order_canonically(std::vector<utf8proc_int32_t>& characters) {
  const auto is_mark = [](utf8proc_int32_t c) { return combining_class(c) != 0; };
  for (auto at = characters.begin(); at != characters.end();) {
    const auto begin = std::find_if(at, characters.end(), is_mark);
    const auto end = std::find_if_not(begin, characters.end(), is_mark);
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    at = end;
  }
}

}  // namespace

std::string to_nfc(std::string_view text) {
  if (is_surely_nfc(text)) return std::string(text);
  std::vector<utf8proc_int32_t> characters = decompose(text);
  order_canonically(characters);
  const auto count =
      utf8proc_normalize_utf32(characters.data(),
                               static_cast<utf8proc_ssize_t>(characters.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  std::string composed;
  composed.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    std::array<utf8proc_uint8_t, 4> bytes{};
    const auto size = utf8proc_encode_char(characters[static_cast<size_t>(i)], bytes.data());
    composed.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(size));
  }
  return composed;
}

}  // namespace r1d::tokenizer
